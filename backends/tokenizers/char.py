"""One token a character: the sorted characters of the corpus after the special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from backends.contracts import SPECIAL_TOKENS, UNK_ID
from backends.tokenizers import huggingface
from trainer_app.errors import ModelIncompatible, TokenizerTrainFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.contracts import Counts

CODE_POINTS: Final = 0x110000
BATCH_CHARS: Final = 1 << 20  # counted at once: the table of counts is as long as Unicode


class CharTokenizer:
    """Characters to ids by one look-up table; a character unseen in training is [UNK]."""

    kind = "char"

    def __init__(self, characters: Sequence[str]) -> None:
        self._tokens = (*SPECIAL_TOKENS, *characters)
        self.vocab_size = len(self._tokens)
        # ids by code point
        self._ids = np.full(CODE_POINTS, UNK_ID, dtype=np.int32)
        self._ids[_code_points("".join(characters))] = np.arange(
            len(SPECIAL_TOKENS), self.vocab_size
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text, one a character."""
        ids: list[int] = self._ids[_code_points(text)].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts; a look-up gains nothing from threads."""
        return [self.encode(text) for text in texts]

    def block_encoder(self) -> CharBlocks:
        """By one look-up for a block."""
        return CharBlocks(self._ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of the ids, special tokens left out."""
        return "".join(
            self._tokens[token_id] for token_id in ids if token_id >= len(SPECIAL_TOKENS)
        )

    def token_text(self, token_id: int) -> str:
        """The character, or the special token's name."""
        return self._tokens[token_id]

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; raises OSError."""
        vocabulary = {token: token_id for token_id, token in enumerate(self._tokens)}
        tokenizer = HuggingFaceTokenizer(
            models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[UNK_ID])
        )
        # The library's regular expressions have no flag with which "." means a newline too.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
        huggingface.save(tokenizer, directory, kind=self.kind)


class CharBlocks:
    """A BlockEncoder, see there."""

    name = "numpy"

    def __init__(self, ids: NDArray[np.int32]) -> None:
        """``ids`` by code point."""
        self._ids = ids.astype(np.uint32)

    def encode(
        self, data: bytes, sizes: NDArray[np.uint32], _apart: NDArray[np.bool_], /
    ) -> tuple[NDArray[np.uint32], Counts]:
        """See BlockEncoder. Every character is on its own, so nothing need be cut."""
        begins = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80  # the others continue one
        starts = np.cumsum(sizes, dtype=np.int64) - sizes
        ids = self._ids[_code_points(data.decode())]
        return ids, lambda: np.add.reduceat(begins, starts, dtype=np.uint32)


def _code_points(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    # "surrogatepass": a lone surrogate is a character like any other that was never seen.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class CharKind:
    """Trains and loads character tokenizers."""

    min_vocab_size = len(SPECIAL_TOKENS) + 1

    def train(self, texts: Iterable[str], *, vocab_size: int, min_frequency: int) -> CharTokenizer:
        """All characters that occur ``min_frequency`` times; ``vocab_size`` is an upper bound.

        Raises TokenizerTrainFailed where they are more than that, or none.
        """
        counts = np.zeros(CODE_POINTS, dtype=np.int64)
        for batch in _batched(texts):
            counts += np.bincount(_code_points(batch), minlength=CODE_POINTS)
        characters = [chr(code) for code in np.flatnonzero(counts >= max(min_frequency, 1))]
        needed = len(SPECIAL_TOKENS) + len(characters)
        if needed > vocab_size:
            raise TokenizerTrainFailed(
                f"vocab_size {vocab_size} is too small: the special tokens and the "
                f"{len(characters)} different characters of this corpus need {needed}"
            )
        if not characters:
            raise TokenizerTrainFailed(
                f"no character occurs {min_frequency} times (min_frequency) in this corpus"
            )
        return CharTokenizer(characters)

    def load(self, directory: Path) -> CharTokenizer:
        """The tokenizer that ``save`` wrote; raises ModelIncompatible."""
        vocabulary = huggingface.load(directory, model="WordLevel").get_vocab()
        tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
        characters = tokens[len(SPECIAL_TOKENS) :]
        if any(len(character) != 1 for character in characters):
            raise ModelIncompatible("tokenizer.json holds tokens that are no single characters")
        return CharTokenizer(characters)


def _batched(texts: Iterable[str]) -> Iterator[str]:
    """The texts joined to batches of at least BATCH_CHARS, but for the last."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield "".join(waiting)
            waiting, size = [], 0
    yield "".join(waiting)


KIND: Final = CharKind()
