"""The units of a corpus, many at a time: their text as bytes, sizes and content hashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer_app.core.splits import splitmix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORD: Final = 8  # bytes hashed at once
_BLANKS: Final = b"\t\n\v\f\r "


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Consecutive units of a corpus; there is at least one, and none is empty."""

    data: bytes  # the UTF-8 of all
    sizes: NDArray[np.uint32]  # bytes of each
    forced: NDArray[np.bool_]  # which end where a longer one was cut

    def texts(self) -> list[str]:
        """The text of each."""
        return [self.data[start:end].decode() for start, end in self._places()]

    def hashes(self) -> NDArray[np.uint64]:
        """A hash of each one's text without the blanks around it."""
        ends = np.cumsum(self.sizes, dtype=np.int64)
        return hash_pieces(self.data, ends - self.sizes, ends)

    def _places(self) -> Iterator[tuple[int, int]]:
        start = 0
        for size in self.sizes.tolist():
            yield start, start + size
            start += size


def hash_pieces(
    data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """64 bits for each non-empty piece of the data, ASCII blanks around it left out.

    The sum of mixed words of eight bytes, each mixed with its place: as evenly spread as the mixer
    is, but no defence against somebody who looks for two texts of one hash.
    """
    starts, ends = _stripped(np.frombuffer(data, dtype=np.uint8), starts, ends)
    lengths = ends - starts
    counts = np.maximum((lengths + WORD - 1) // WORD, 1)  # words of each piece
    last = np.cumsum(counts) - 1
    first = last - counts + 1
    place = np.arange(int(last[-1]) + 1)
    place -= np.repeat(first, counts)
    begins = WORD * place
    begins += np.repeat(starts, counts)
    # every run of eight bytes as a number, also of those that begin between the words
    runs = np.ndarray((len(data) + 1,), dtype="<u8", buffer=data + bytes(WORD), strides=(1,))
    words = runs[begins].astype(np.uint64, copy=False)
    kept = (lengths - WORD * (counts - 1)).astype(np.uint64)  # bytes of the last word: 0 to 8
    words[last] &= np.where(
        kept < WORD, (np.uint64(1) << (8 * kept) % 64) - np.uint64(1), ~np.uint64(0)
    )
    words ^= splitmix64(np.arange(int(counts.max()), dtype=np.uint64)).take(place)
    return splitmix64(np.add.reduceat(splitmix64(words), first) + lengths.astype(np.uint64))


def _stripped(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pieces without the blanks at both ends; of a blank piece nothing is left."""
    blank = np.zeros(256, dtype=np.bool_)
    blank[list(_BLANKS)] = True
    starts, ends = starts.copy(), ends.copy()
    left = np.arange(len(starts))
    while len(left := left[blank[data[starts[left]]]]):
        starts[left] += 1
        left = left[starts[left] < ends[left]]
    left = np.flatnonzero(starts < ends)
    while len(left := left[blank[data[ends[left] - 1]]]):
        ends[left] -= 1
    return starts, ends
