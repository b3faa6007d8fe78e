"""The ids of much text, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.contracts import Counts


class EncodersDisagree(Exception):
    """A fast encoder does not give the ids of the tokenizer that it stands in for."""


class PieceByPiece:
    """Encodes as a tokenizer encodes a list of texts."""

    name = "tokenizers"

    def __init__(self, encode_batch: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self._encode_batch = encode_batch

    def encode(
        self, data: bytes, sizes: NDArray[np.uint32], _apart: NDArray[np.bool_], /
    ) -> tuple[NDArray[np.uint32], Counts]:
        """See BlockEncoder. Every piece is encoded apart."""
        encoded = self._encode_batch([piece.decode() for piece in cut(data, sizes)])
        counts = np.fromiter(map(len, encoded), dtype=np.uint32, count=len(encoded))
        ids = np.fromiter(chain.from_iterable(encoded), dtype=np.uint32, count=int(counts.sum()))
        return ids, lambda: counts


def cut(data: bytes, sizes: NDArray[np.uint32]) -> Iterator[bytes]:
    """Consecutive pieces of these sizes."""
    start = 0
    for size in sizes.tolist():
        yield data[start : start + size]
        start += size
