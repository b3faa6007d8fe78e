"""Byte-level BPE by HuggingFace's ``tokenizers``: any text survives the round trip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from backends.contracts import SPECIAL_TOKENS
from backends.tokenizers import huggingface
from backends.tokenizers.blocks import PieceByPiece
from backends.tokenizers.gigatoken_bpe import gigatoken_encoder
from backends.tokenizers.merges import learn_merges
from backends.tokenizers.words import count_words
from trainer_app.errors import TokenizerTrainFailed

if TYPE_CHECKING:
    from backends.contracts import BlockEncoder

# GPT-4's pattern with one change: a run of blank lines ends with its last "\n", and a run of
# punctuation takes only whole line ends with it. Nothing then looks from one line into the next
# that is not blank, so a text cut there gives the ids that it gives whole: see ``encode``.
PATTERN: Final = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+(?:\r?\n)*",
        r"\s*\n",
        r"\s+(?!\S)",
        r"\s+",
    )
)
MIN_VOCAB_SIZE: Final = len(SPECIAL_TOKENS) + 256


class BPETokenizer:
    """A trained byte-level BPE."""

    kind = "bpe"

    def __init__(self, tokenizer: HuggingFaceTokenizer) -> None:
        self._tokenizer = huggingface.text_only(tokenizer)
        self.vocab_size = tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        For a text cut after a "\\n" that is not followed by a blank line,
        ``encode(a) + encode(b) == encode(a + b)``.
        """
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, on all the threads that RAYON_NUM_THREADS gives."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def block_encoder(self) -> BlockEncoder:
        """By gigatoken where it is installed, else by tokenizers."""
        plain = PieceByPiece(self.encode_batch)
        fast = gigatoken_encoder(self._tokenizer, plain, pre_tokenizer())
        return fast or plain

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """One token; bytes that are a part of a character as ``\\xe2``."""
        if token_id < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token_id]
        token = self._tokenizer.id_to_token(token_id)
        assert token is not None, f"{token_id} is beyond the vocabulary"
        return bytes(BYTE_LETTERS[letter] for letter in token).decode("utf-8", "backslashreplace")

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; raises OSError."""
        huggingface.save(self._tokenizer, directory, kind=self.kind)


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Words by PATTERN, then each byte as a letter."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _bytes_of_letters() -> dict[str, int]:
    """ByteLevel's letters and the bytes that they stand for.

    Printable bytes stand for themselves, the others, in order, for U+0100 and on (GPT-2's
    ``bytes_to_unicode``).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(256 + position): byte for position, byte in enumerate(others)
    }


BYTE_LETTERS: Final = _bytes_of_letters()


_LETTERS: Final = {byte: letter for letter, byte in BYTE_LETTERS.items()}
# ids as tokenizers gives them: by letter
_ALPHABET: Final = {
    bytes([byte]): token_id
    for token_id, (_, byte) in enumerate(sorted(BYTE_LETTERS.items()), start=len(SPECIAL_TOKENS))
}


def _as_huggingface(
    ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]]
) -> HuggingFaceTokenizer:
    def spelled(token: bytes) -> str:
        return "".join(_LETTERS[byte] for byte in token)

    vocabulary = {name: token_id for token_id, name in enumerate(SPECIAL_TOKENS)}
    vocabulary |= {spelled(token): token_id for token, token_id in ids.items()}
    tokenizer = HuggingFaceTokenizer(
        models.BPE(vocabulary, [(spelled(left), spelled(right)) for left, right in merges])
    )
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


class BPEKind:
    """Trains and loads byte-level BPEs."""

    min_vocab_size = MIN_VOCAB_SIZE

    def train(self, texts: Iterable[str], *, vocab_size: int, min_frequency: int) -> BPETokenizer:
        """Learn the merges: the same texts give the same bytes, whatever the threads.

        Raises TokenizerTrainFailed where the texts do not hold so many merges.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise TokenizerTrainFailed(
                f"vocab_size {vocab_size} is too small: the special tokens and the 256 bytes "
                f"need {MIN_VOCAB_SIZE}"
            )
        ids, merges = learn_merges(
            count_words(texts),
            _ALPHABET,
            tokens=vocab_size - len(SPECIAL_TOKENS),
            min_frequency=min_frequency,
        )
        reached = len(SPECIAL_TOKENS) + len(ids)
        if reached < vocab_size:
            raise TokenizerTrainFailed(
                f"vocab_size {vocab_size} cannot be reached: with min_frequency {min_frequency} "
                f"this corpus gives {reached} tokens; ask for at most {reached}, lower "
                "min_frequency or give more text"
            )
        return BPETokenizer(_as_huggingface(ids, merges))

    def load(self, directory: Path) -> BPETokenizer:
        """The tokenizer that ``save`` wrote; raises ModelIncompatible."""
        return BPETokenizer(huggingface.load(directory, model="BPE"))


KIND: Final = BPEKind()
