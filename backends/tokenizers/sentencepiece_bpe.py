"""BPE by Google's ``sentencepiece``, with bytes for what has no piece: any text comes back.

A vocabulary that has no room for the bytes has [UNK] for it.

``sentencepiece`` learns the pieces and writes tokenizer.model; the same pieces make the
tokenizer.json that gives the ids here and in transformers. A text gives the same ids by either,
but for U+2581, which ``sentencepiece`` takes for a space and tokenizer.json spells in bytes.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from backends.contracts import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, UNK_ID
from backends.json_files import read_plain
from backends.tokenizers import huggingface
from backends.tokenizers.blocks import PieceByPiece
from backends.tokenizers.word_counts import count_words
from backends.vocabulary import sentencepiece_sizes
from trainer_app.errors import ModelIncompatible, TokenizerTrainFailed

MODEL_FILE: Final = "tokenizer.model"
COVERAGE: Final = 0.9995  # of the text's characters have pieces of their own (sentencepiece's)
SPACE: Final = "\u2581"  # how sentencepiece writes one
# Always tokens of their own. sentencepiece cannot learn from a text with a tab; and with line ends
# apart a text cut at one gives the ids that it gives whole.
APART: Final = ("\n", "\t")
BYTES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))
# The first ids, in a vocabulary that has room for the bytes and in one that has none.
FIXED: Final = (*SPECIAL_TOKENS, *APART, *BYTES)
FIXED_WITHOUT_BYTES: Final = (*SPECIAL_TOKENS, *APART)
MIN_VOCAB_SIZE: Final = len(FIXED_WITHOUT_BYTES) + 1

# Pieces have at most 16 characters: what stands further apart need not be learned from as one.
# U+2581, U+2585 and U+001F mean a space, an unknown character and a border to sentencepiece.
WORDS: Final = re.compile(r" {0,64}[^ \n\t\0\x1f\u2581\u2585]{1,64}| {1,64}")
# The first character of a name of FIXED. sentencepiece learns nothing from such a name, not even
# its characters, which would be counted here and be no pieces there.
NAMES: Final = re.compile(
    "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in SPECIAL_TOKENS)
    + "|<(?=0x[0-9A-F]{2}>)"
)


class SentencePieceTokenizer:
    """A trained sentencepiece BPE."""

    kind = "sentencepiece"

    def __init__(self, tokenizer: HuggingFaceTokenizer, model: bytes) -> None:
        """``model``: the content of tokenizer.model, with the same pieces."""
        self._tokenizer = huggingface.text_only(tokenizer)
        self._model = model
        self.vocab_size = tokenizer.get_vocab_size()
        pieces = _pieces(tokenizer)
        fixed = _fixed_of(pieces)
        self._bytes = [
            *(b"" for _ in SPECIAL_TOKENS),
            *(piece.encode() for piece in APART),
            *(bytes([byte]) for byte in range(256) if fixed is FIXED),
            *(piece.encode() for piece in pieces[len(fixed) :]),
        ]

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Cut at any "\\n", ``encode(a) + encode(b) == encode(a + b)``."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, on all the threads that RAYON_NUM_THREADS gives."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def block_encoder(self) -> PieceByPiece:
        """By tokenizers."""
        return PieceByPiece(self.encode_batch)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes[token_id] for token_id in ids).decode("utf-8", "replace")

    def token_text(self, token_id: int) -> str:
        """One token; bytes that are a part of a character as ``\\xe2``."""
        if token_id < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token_id]
        return self._bytes[token_id].decode("utf-8", "backslashreplace")

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and tokenizer.model; raises OSError."""
        huggingface.save(self._tokenizer, directory, kind=self.kind)
        (directory / MODEL_FILE).write_bytes(self._model)


class SentencePieceKind:
    """Trains and loads sentencepiece BPEs."""

    min_vocab_size = MIN_VOCAB_SIZE

    def train(
        self, texts: Iterable[str], *, vocab_size: int, min_frequency: int
    ) -> SentencePieceTokenizer:
        """Learn the pieces: the same texts give the same bytes, whatever the threads.

        A piece was merged ``min_frequency`` times. A character that is rarer, or among the
        rarest 0.05% of the text, is spelled in bytes; without room for the bytes it is [UNK], as
        are the rarest of more characters than there is room for. Raises TokenizerTrainFailed
        where the texts do not hold so many pieces, or have more characters than there is room for
        beside the bytes.
        """
        fixed = FIXED if vocab_size > len(FIXED) else FIXED_WITHOUT_BYTES
        _check_room(vocab_size, fixed, characters=1)
        words = _without_names(count_words(texts, WORDS))
        characters = _common_characters(words, min_frequency)
        if fixed is FIXED_WITHOUT_BYTES:
            characters = characters[: vocab_size - len(fixed)]
        _check_room(vocab_size, fixed, characters=len(characters))
        model, learned = _learn(_samples(words, characters), vocab_size, fixed)
        pieces = _frequent(learned, fixed, words, min_frequency)
        if len(fixed) + pieces < vocab_size:  # then there was room for all the characters
            singles = sum(len(piece) == 1 for piece in learned)
            without_bytes = "" if fixed is FIXED else " without the 256 bytes"
            raise TokenizerTrainFailed(
                f"vocab_size {vocab_size} cannot be reached: with min_frequency {min_frequency} "
                f"this corpus gives {len(fixed) + pieces} tokens{without_bytes}; ask for "
                f"{sentencepiece_sizes(pieces, characters=singles)}, lower min_frequency "
                "or give more text"
            )
        return SentencePieceTokenizer(_as_huggingface(learned, fixed), model)

    def load(self, directory: Path) -> SentencePieceTokenizer:
        """The tokenizer that ``save`` wrote; raises ModelIncompatible."""
        tokenizer = huggingface.load(directory, model="BPE", fall_backs=("byte", "unk"))
        has_bytes = huggingface.fall_back_of(tokenizer) == "byte"
        _check_pieces(_pieces(tokenizer), FIXED if has_bytes else FIXED_WITHOUT_BYTES)
        model = read_plain(directory / MODEL_FILE, huggingface.LARGEST)
        return SentencePieceTokenizer(tokenizer, model)


def _check_room(vocab_size: int, fixed: Sequence[str], *, characters: int) -> None:
    needed = len(fixed) + characters
    if vocab_size < needed:
        with_bytes = ", the 256 bytes" if fixed is FIXED else ""
        raise TokenizerTrainFailed(
            f"vocab_size {vocab_size} is too small: the special tokens, the line end, the tab"
            f"{with_bytes} and {characters} characters of this corpus need {needed}"
        )


def _without_names(words: Counter[str]) -> Counter[str]:
    """The words, cut in two within each name of FIXED: then it is text, as it is when encoded."""
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for part in NAMES.sub(r"\g<0>\n", word).split("\n"):
            parts[part] += count
    return parts


def _common_characters(words: Counter[str], min_frequency: int) -> list[str]:
    """The characters that get pieces, the most frequent first.

    Raises TokenizerTrainFailed where there are none.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    left = COVERAGE * counts.total()
    characters = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if left <= 0 or count < min_frequency:
            break
        characters.append(character)
        left -= count
    if not characters:
        raise TokenizerTrainFailed(
            f"no character occurs {min_frequency} times (min_frequency) in this corpus"
        )
    return characters


def _samples(words: Counter[str], characters: Sequence[str]) -> Iterator[str]:
    """What sentencepiece learns from: parts of words of these characters, each with its number."""
    parts = re.compile(f"[{''.join(map(re.escape, sorted(characters)))}]+")
    for word, count in words.items():
        for part in parts.findall(word):
            yield f"{part}\t{count}"


def _learn(
    samples: Iterator[str], vocab_size: int, fixed: Sequence[str]
) -> tuple[bytes, list[str]]:
    """The content of tokenizer.model and the pieces after the fixed ones, best first."""
    # Here, not above: where models are trained and used with finished tokenizers it may be absent.
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer  # noqa: PLC0415

    pad, unk, bos, eos = SPECIAL_TOKENS
    written = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=samples,
        input_format="tsv",
        model_writer=written,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,  # fewer pieces are found out by their number
        byte_fallback=fixed is FIXED,
        character_coverage=1.0,  # of the characters that were chosen
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,  # indentation
        split_digits=True,
        user_defined_symbols=list(APART),
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_piece=pad,
        unk_piece=unk,
        bos_piece=bos,
        eos_piece=eos,
        num_threads=1,
        minloglevel=2,  # errors
    )
    model = written.getvalue()
    processor = SentencePieceProcessor(model_proto=model)
    ids = range(len(fixed), processor.GetPieceSize())
    return model, [processor.IdToPiece(token_id).replace(SPACE, " ") for token_id in ids]


def _frequent(
    learned: Sequence[str], fixed: Sequence[str], words: Counter[str], min_frequency: int
) -> int:
    """How many of the pieces are characters, or were merged so often.

    sentencepiece goes on where nothing is left to merge, with pieces that occur nowhere by the
    time that they are learned.
    """
    merged = sum(len(piece) > 1 for piece in learned)  # these first, the most frequent first

    def is_rare(place: int) -> bool:
        holding = [word for word in words if learned[place] in word]
        until_then = _as_huggingface((*learned[: place + 1], *learned[merged:]), fixed)
        encodings = until_then.encode_batch_fast(holding, add_special_tokens=False)
        merges = (encoding.ids.count(len(fixed) + place) for encoding in encodings)
        times = sum(words[word] * n for word, n in zip(holding, merges, strict=True))
        return times < min_frequency

    return len(learned) - merged + bisect_left(range(merged), True, key=is_rare)


def _as_huggingface(learned: Sequence[str], fixed: Sequence[str]) -> HuggingFaceTokenizer:
    """The same pieces in the other library's form, spaces written as spaces.

    sentencepiece merges whatever two neighbours make a piece, the best piece first; here every
    pair that makes one is listed in that order.
    """
    known = set(learned)
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learned
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    vocabulary = {piece: token_id for token_id, piece in enumerate((*fixed, *learned))}
    tokenizer = HuggingFaceTokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=SPECIAL_TOKENS[UNK_ID],
            byte_fallback=fixed is FIXED,
            fuse_unk=fixed is not FIXED,  # as sentencepiece does: one for a run of characters
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
    return tokenizer


def _pieces(tokenizer: HuggingFaceTokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=lambda piece: vocabulary[piece])


def _fixed_of(pieces: Sequence[str]) -> tuple[str, ...]:
    return FIXED if tuple(pieces[: len(FIXED)]) == FIXED else FIXED_WITHOUT_BYTES


def _check_pieces(pieces: Sequence[str], fixed: Sequence[str]) -> None:
    """Raise ModelIncompatible for pieces that ``encode`` and ``decode`` do not reckon with."""
    if tuple(pieces[: len(fixed)]) != fixed:
        raise ModelIncompatible(f"{huggingface.TOKENIZER_FILE} begins with other pieces")
    if spanning := [piece for piece in pieces[len(fixed) :] if "\n" in piece]:
        raise ModelIncompatible(
            f"{huggingface.TOKENIZER_FILE}: the piece {spanning[0]!r} spans more than a line"
        )


KIND: Final = SentencePieceKind()
