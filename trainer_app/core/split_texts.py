"""The texts of one split of a corpus, read from the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_app.core.corpus import read_units
from trainer_app.core.splits import ByteHistogram, Split, SplitRule
from trainer_app.core.stopping import ShouldStop, raise_if_stopped

if TYPE_CHECKING:
    from trainer_app.core.splits import SplitPlan


def plan_split(corpus: Path, rule: SplitRule, *, sha256: str, should_stop: ShouldStop) -> SplitPlan:
    """Read the whole corpus to place the borders of its splits.

    Raises the errors of ``read_units``, CorpusTooShort and StopRequested.
    """
    histogram = ByteHistogram(rule)
    for block in read_units(corpus, sha256=sha256):
        raise_if_stopped(should_stop)
        histogram.add(block.hashes(), block.sizes)
    return histogram.plan()


def split_texts(
    corpus: Path, plan: SplitPlan, split: Split, *, sha256: str, should_stop: ShouldStop
) -> Iterator[str]:
    """The units of one split, in order. Raises as ``plan_split`` does."""
    for block in read_units(corpus, sha256=sha256):
        raise_if_stopped(should_stop)
        for text, where in zip(block.texts(), plan.assign(block.hashes()).tolist(), strict=True):
            if where == split:
                yield text
