"""Learning the merges of a byte-pair encoding from counted words.

Gage, A New Algorithm for Data Compression (1994); Sennrich, Haddow, Birch (2016). Greedy: of all
pairs of neighbours the most frequent is merged, of equals the one with the smaller ids; so
``tokenizers`` does, and the merges are its merges. All positions of a pair are merged at once, in
arrays.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIFT: Final = 32  # a pair is one number: the left id above, the right one below
MASK: Final = (1 << SHIFT) - 1
GONE: Final = -1  # the id at a position that was merged into the one before
BORDER: Final = -2  # the id before the first and behind the last position of every word


def learn_merges(
    words: Mapping[bytes, int],
    alphabet: Mapping[bytes, int],
    *,
    tokens: int,
    min_frequency: int,
) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """The tokens with their ids, and the pairs to merge, first to last.

    ``words`` are not empty, their order does not matter. ``alphabet`` gives every byte its id. Ends
    with so many ``tokens``, those of the alphabet counted, or where no pair occurs
    ``min_frequency`` times.
    """
    text = _Text(words, alphabet)
    merges: list[tuple[bytes, bytes]] = []
    ids = dict(alphabet)
    first_id = max(ids.values()) + 1
    spelled = {token_id: token for token, token_id in alphabet.items()}
    while len(ids) < tokens and (pair := text.most_frequent(min_frequency)) is not None:
        left, right = pair >> SHIFT, pair & MASK
        merges.append((spelled[left], spelled[right]))
        # A new one: all that spells a token is merged in one order, so to one pair in the end.
        token, token_id = spelled[left] + spelled[right], first_id + len(merges) - 1
        ids[token], spelled[token_id] = token_id, token
        text.merge(left, right, token_id)
    return ids, merges


class _Text:
    """Every position of every word, with its neighbours; pairs, their counts and places."""

    def __init__(self, words: Mapping[bytes, int], alphabet: Mapping[bytes, int]) -> None:
        ordered = sorted(words)
        size = sum(map(len, ordered))
        id_of = np.full(256, BORDER, dtype=np.int64)
        for byte, token_id in alphabet.items():
            id_of[byte[0]] = token_id
        lengths = np.fromiter(map(len, ordered), dtype=np.int64, count=len(ordered))
        counts = np.fromiter((words[word] for word in ordered), dtype=np.int64, count=len(ordered))
        # position ``size`` is the border of all words
        self._ids = np.full(size + 1, BORDER, dtype=np.int64)
        self._ids[:size] = id_of[np.frombuffer(b"".join(ordered), dtype=np.uint8)]
        self._weights = np.repeat(counts, lengths)
        ends = np.cumsum(lengths)
        self._next = np.arange(1, size + 2)
        self._next[ends - 1] = size
        self._previous = np.arange(-1, size)
        self._previous[ends - lengths] = size
        self._counts: dict[int, int] = {}
        self._places: dict[int, list[NDArray[np.int64]]] = {}
        self._queue: list[tuple[int, int]] = []
        first = np.flatnonzero(self._next[:size] != size)
        pairs = (self._ids[first] << SHIFT) | self._ids[self._next[first]]
        self._change(pairs, self._weights[first], first)

    def most_frequent(self, min_frequency: int) -> int | None:
        """The pair to merge next, if there is one frequent enough."""
        while self._queue:
            count, pair = self._queue[0]
            if -count != self._counts[pair]:  # it has become rarer since
                if self._counts[pair] > 0:
                    heapq.heapreplace(self._queue, (-self._counts[pair], pair))
                else:
                    heapq.heappop(self._queue)
                continue
            return pair if -count >= max(min_frequency, 1) else None
        return None

    def merge(self, left: int, right: int, merged: int) -> None:
        """Put one id in the place of the two wherever they are neighbours."""
        pair = (left << SHIFT) | right
        places = self._places.pop(pair)
        at = places[0] if len(places) == 1 else np.unique(np.concatenate(places))
        ids, following, previous = self._ids, self._next, self._previous
        then = following[at]
        here = (ids[at] == left) & (ids[then] == right)  # elsewhere another merge was first
        at, then = at[here], then[here]
        if left == right:
            at = _every_other(at, then)
            then = following[at]
        weights = self._weights[at]
        before, after = previous[at], following[then]
        ids[then] = GONE
        # between two neighbouring occurrences lies one pair: the first of the two accounts for it
        led = (ids[before] != BORDER) & (ids[before] != GONE)
        trailed = ids[after] != BORDER
        old = [(ids[before[led]] << SHIFT) | left, (right << SHIFT) | ids[after[trailed]]]
        ids[at] = merged
        following[at] = after
        previous[after] = at  # also of the border, where nobody looks
        new = [(ids[before[led]] << SHIFT) | merged, (merged << SHIFT) | ids[after[trailed]]]
        lost = np.concatenate([weights[led], weights[trailed]])
        self._change(np.concatenate(old), -lost, None)
        self._change(np.concatenate(new), lost, np.concatenate([before[led], at[trailed]]))
        self._counts[pair] = 0

    def _change(
        self, pairs: NDArray[np.int64], by: NDArray[np.int64], places: NDArray[np.int64] | None
    ) -> None:
        """Count pairs up, at these places, or down."""
        if not len(pairs):
            return
        order = np.argsort(pairs, kind="stable")
        pairs = pairs[order]
        starts = np.concatenate([[0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1])
        changes = np.add.reduceat(by[order], starts).tolist()
        counts = self._counts
        if places is None:
            for pair, change in zip(pairs[starts].tolist(), changes, strict=True):
                counts[pair] += change
            return
        places = places[order]
        ends = [*starts[1:].tolist(), len(pairs)]
        for pair, change, start, end in zip(
            pairs[starts].tolist(), changes, starts.tolist(), ends, strict=True
        ):
            counts[pair] = count = counts.get(pair, 0) + change
            self._places.setdefault(pair, []).append(places[start:end])
            heapq.heappush(self._queue, (-count, pair))


def _every_other(at: NDArray[np.int64], then: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of places that overlap, the first, third, fifth and so on."""
    place = np.arange(len(at))
    begins = np.ones(len(at), dtype=np.bool_)
    begins[1:] = at[1:] != then[:-1]
    first = np.maximum.accumulate(np.where(begins, place, 0))
    kept: NDArray[np.int64] = at[(place - first) % 2 == 0]
    return kept
