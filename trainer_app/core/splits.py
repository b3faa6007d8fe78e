"""Which unit of a corpus belongs to which split.

A unit's place is a function of its text, the seed and the fractions: the same text is never in
two splits, and one file or another order of the same units gives the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer_app.core.corpus_size import fewest_units, too_few_units
from trainer_app.errors import CorpusTooShort

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKETS: Final = 65_536  # of the keys' top 16 bits
# Where splits that begin with the first bucket miss their fractions by more than this share of the
# corpus, they may begin with another. With more filled buckets than these that helps in one corpus
# of hundreds: a unit that is most of the corpus would have to be the first of its split.
NEAR: Final = 0.005
FEW: Final = 1_024


class Split(IntEnum):
    """The three parts of a corpus."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2

    @property
    def label(self) -> str:
        """The name as it stands in files and in the API."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """Seed and fractions, by bytes, of one way to split."""

    seed: int
    validation_fraction: float
    test_fraction: float

    @property
    def named(self) -> dict[str, float]:
        """The fractions under the names that the API has for them."""
        return {
            "holdout_fraction": self.validation_fraction,
            "test_split_ratio": self.test_fraction,
        }

    @property
    def name(self) -> str:
        """Unique for the rule; fit for a directory's name.

        "split-" stood for the rule of versions before, which always began with the first bucket.
        """
        return f"split2-{self.seed}-{self.validation_fraction!r}-{self.test_fraction!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """The rule and the thresholds that meet its fractions on one corpus.

    Buckets are counted from ``first``, and behind the last from 0 on.
    """

    rule: SplitRule
    first: int
    validation_end: int  # buckets below: validation
    test_end: int  # buckets from validation_end below this: test; all others: train

    def assign(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """The Split of each unit."""
        buckets = _buckets(hashes, self.rule.seed)
        buckets -= self.first
        buckets %= BUCKETS
        splits = np.full(len(buckets), Split.TRAIN, dtype=np.uint8)
        splits[buckets < self.test_end] = Split.TEST
        splits[buckets < self.validation_end] = Split.VALIDATION
        return splits


class ByteHistogram:
    """Bytes of a corpus by bucket: all that is needed to place the thresholds."""

    def __init__(self, rule: SplitRule) -> None:
        self._rule = rule
        self._bytes = np.zeros(BUCKETS, dtype=np.int64)

    def add(self, hashes: NDArray[np.uint64], sizes: NDArray[np.uint32]) -> None:
        """Count some units."""
        buckets = _buckets(hashes, self._rule.seed)
        # float64 counts exactly up to 2^53 bytes
        counted = np.bincount(buckets, weights=sizes.astype(np.float64), minlength=BUCKETS)
        self._bytes += counted.astype(np.int64)

    def plan(self) -> SplitPlan:
        """Thresholds that come close to the fractions with every wanted split non-empty.

        The first bucket is where they are counted from. A unit that is much of the corpus may lie
        in it, or in the next, and so in a split that wants little: then they are counted from the
        bucket from which both fractions are met most nearly. Raises CorpusTooShort where the
        corpus has too few different units.
        """
        rule = self._rule
        filled = np.flatnonzero(self._bytes)
        if len(filled) < fewest_units(**rule.named):
            raise CorpusTooShort(too_few_units(str(len(filled)), **rule.named))
        sizes = self._bytes[filled]
        begin, best = 0, _cuts(sizes, rule)
        if best.missed > NEAR * int(sizes.sum()) and len(filled) <= FEW:
            for other in range(1, len(filled)):
                found = _cuts(np.roll(sizes, -other), rule)
                if found.missed < best.missed:
                    begin, best = other, found
        first = int(filled[begin]) if begin else 0
        validation_end, test_end = (
            (int(filled[(begin + cut) % len(filled)]) - first) % BUCKETS
            for cut in (best.validation, best.test)
        )
        return SplitPlan(rule=rule, first=first, validation_end=validation_end, test_end=test_end)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cuts:
    """How many filled buckets lie below each threshold."""

    validation: int
    test: int
    missed: float  # bytes that validation and test have too many or too few, together


def _cuts(sizes: NDArray[np.int64], rule: SplitRule) -> _Cuts:
    """Those that come closest to the fractions: of validation, then of test behind it."""
    below = np.concatenate([[0], np.cumsum(sizes)])  # bytes below each cut
    total = int(below[-1])
    kept = len(sizes) - 1  # train has a bucket whatever the fractions
    validation = 0
    if rule.validation_fraction > 0:
        most = kept - (rule.test_fraction > 0)
        validation = _closest(below, rule.validation_fraction * total, 1, most)
    missed = abs(float(below[validation]) - rule.validation_fraction * total)
    test = validation
    if rule.test_fraction > 0:
        target = float(below[validation]) + rule.test_fraction * total
        test = _closest(below, target, validation + 1, kept)
        missed += abs(float(below[test]) - target)
    return _Cuts(validation=validation, test=test, missed=missed)


def _closest(below: NDArray[np.int64], target: float, low: int, high: int) -> int:
    """The cut in low..high that leaves most nearly ``target`` bytes below it."""
    return low + int(np.argmin(np.abs(below[low : high + 1] - target)))


def _buckets(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
    keys = splitmix64(hashes ^ splitmix64(np.array([seed], dtype=np.uint64)))
    return (keys >> np.uint64(48)).astype(np.int64)


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014), the finalizer."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    shifted = mixed >> np.uint64(30)
    mixed ^= shifted  # in place: the hashes of a corpus go through here
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    return mixed
