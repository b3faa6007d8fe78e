"""Which text is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_app.core.corpus import read_units
from trainer_app.core.split_texts import plan_split, split_texts
from trainer_app.core.splits import (
    FEW,
    NEAR,
    ByteHistogram,
    Split,
    SplitPlan,
    SplitRule,
    splitmix64,
)
from trainer_app.core.stopping import never
from trainer_app.errors import CorpusTooShort

if TYPE_CHECKING:
    from numpy.typing import NDArray

Write = Callable[[bytes], tuple[Path, str]]


def rule(validation: float, test: float, seed: int = 42) -> SplitRule:
    return SplitRule(seed=seed, validation_fraction=validation, test_fraction=test)


def divide(written: tuple[Path, str], by: SplitRule) -> dict[Split, list[str]]:
    path, sha256 = written
    plan = plan_split(path, by, sha256=sha256, should_stop=never)
    return {
        split: list(split_texts(path, plan, split, sha256=sha256, should_stop=never))
        for split in Split
    }


def size(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)


LINES = "".join(f"line {n * n} of many, {'and again ' * (n % 7)}\n" for n in range(4_000))
PARAGRAPHS = "".join(f"{n}\nwords of {n}\n\n" for n in range(3_000))


@pytest.mark.parametrize("text", [LINES, PARAGRAPHS], ids=["lines", "paragraphs"])
def test_the_fractions_are_met_by_bytes(write_corpus: Write, text: str) -> None:
    parts = divide(write_corpus(text.encode()), rule(0.05, 0.2))
    total = len(text.encode())
    assert size(parts[Split.VALIDATION]) / total == pytest.approx(0.05, abs=0.002)
    assert size(parts[Split.TEST]) / total == pytest.approx(0.2, abs=0.002)
    assert sum(map(size, parts.values())) == total


@pytest.mark.parametrize("text", [LINES, PARAGRAPHS], ids=["lines", "paragraphs"])
def test_the_same_text_is_never_in_two_splits(write_corpus: Write, text: str) -> None:
    repeated = text + text[: len(text) // 2] + "\n\n" + text
    parts = divide(write_corpus(repeated.encode()), rule(0.2, 0.3))
    found = [{unit.strip() for unit in units} for units in parts.values()]
    assert all(found)
    assert len(set().union(*found)) == sum(map(len, found))


def test_a_seed_gives_the_same_split_each_time_and_another_seed_another(
    write_corpus: Write,
) -> None:
    written = write_corpus(LINES.encode())
    assert divide(written, rule(0.1, 0.1)) == divide(written, rule(0.1, 0.1))
    assert divide(written, rule(0.1, 0.1)) != divide(written, rule(0.1, 0.1, seed=43))


def test_the_order_of_the_lines_does_not_matter(tmp_path: Path) -> None:
    forward, backward = tmp_path / "a", tmp_path / "b"
    forward.write_text(LINES)
    backward.write_text("".join(reversed(LINES.splitlines(keepends=True))))
    one, other = (
        divide((path, hashlib.sha256(path.read_bytes()).hexdigest()), rule(0.1, 0.1))
        for path in (forward, backward)
    )
    assert {split: sorted(texts) for split, texts in one.items()} == {
        split: sorted(texts) for split, texts in other.items()
    }


def test_a_split_that_is_wanted_gets_at_least_one_line(write_corpus: Write) -> None:
    parts = divide(write_corpus(b"one\ntwo\nthree\n"), rule(0.001, 0.001))
    assert [len(parts[split]) for split in Split] == [1, 1, 1]


def test_training_keeps_a_line_though_the_fractions_leave_none(write_corpus: Write) -> None:
    parts = divide(write_corpus(b"one\ntwo\nthree\nfour\n"), rule(0.5, 0.5))
    assert all(parts.values())


def test_no_fraction_holds_nothing_out(write_corpus: Write) -> None:
    parts = divide(write_corpus(b"one\none\n"), rule(0.0, 0.0))
    assert parts == {Split.TRAIN: ["one\n", "one\n"], Split.VALIDATION: [], Split.TEST: []}
    assert divide(write_corpus(b"one\ntwo\n"), rule(0.0, 0.1))[Split.VALIDATION] == []


def test_too_few_different_lines_are_refused_with_what_to_set(write_corpus: Write) -> None:
    with pytest.raises(CorpusTooShort, match=r"has 2 different .* 3 splits .*test_split_ratio"):
        divide(write_corpus(b"one\ntwo\none\ntwo\n"), rule(0.1, 0.1))


def test_a_refusal_names_no_fraction_that_is_zero_already(write_corpus: Write) -> None:
    with pytest.raises(CorpusTooShort) as refused:
        divide(write_corpus(b"one\n"), rule(0.1, 0.0))
    assert str(refused.value).endswith("give more text, or set holdout_fraction (0.1) to 0")


def test_hashes_spread_evenly_over_the_splits(write_corpus: Write) -> None:
    path, sha256 = write_corpus(LINES.encode())
    plan = plan_split(path, rule(0.5, 0.25), sha256=sha256, should_stop=never)
    counts = np.zeros(3, dtype=int)
    for block in read_units(path, sha256=sha256):
        counts += np.bincount(plan.assign(block.hashes()), minlength=3)
    assert counts / counts.sum() == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


# The sizes of the units of a corpus, by their hashes.
Units = dict[int, int]
UNEVEN = st.dictionaries(
    st.integers(0, 2**64 - 1),
    st.sampled_from([1, 13, 40, 524, 900, 16_384]),
    min_size=3,
    max_size=30,
)
FRACTIONS = st.sampled_from([0.0, 0.001, 0.01, 0.15, 0.5])
RULES = st.builds(rule, FRACTIONS, FRACTIONS, st.integers(0, 3))


def plan_of(units: Units, by: SplitRule) -> SplitPlan:
    histogram = ByteHistogram(by)
    histogram.add(np.array(list(units), np.uint64), np.array(list(units.values()), np.uint32))
    return histogram.plan()


def bytes_of(units: Units, plan: SplitPlan) -> list[int]:
    """Of each split."""
    sizes = np.array(list(units.values()))
    splits = plan.assign(np.array(list(units), dtype=np.uint64))
    return [int(sizes[splits == split].sum()) for split in Split]


def keys_of(hashes: NDArray[np.uint64], by: SplitRule) -> NDArray[np.uint64]:
    """What units are put in order by."""
    return splitmix64(hashes ^ splitmix64(np.array([by.seed], dtype=np.uint64)))


def best_from_each(units: Units, by: SplitRule) -> list[float]:
    """The bytes by which validation and test together miss their fractions, at the least.

    Neighbours in the order of the hashes: validation from one of them on, then test. One number
    for each that can be the first, in that order.
    """
    hashes = np.array(list(units), dtype=np.uint64)
    sizes = np.array(list(units.values()))[np.argsort(keys_of(hashes, by))].tolist()
    total = sum(sizes)
    found = []
    for first in range(len(sizes)):
        left = sizes[first:] + sizes[:first]
        missed = 0.0
        wanted = [fraction for fraction in by.named.values() if fraction > 0]
        for place, fraction in enumerate(wanted):
            others = len(wanted) - place  # splits that need a unit yet
            taken = min(
                range(1, len(left) - others + 1),
                key=lambda count: abs(sum(left[:count]) - fraction * total),
            )
            missed += abs(sum(left[:taken]) - fraction * total)
            left = left[taken:]
        found.append(missed)
    return found


@given(UNEVEN, RULES)
def test_of_few_units_the_fractions_are_met_as_nearly_as_neighbours_in_hash_order_can(
    units: Units, by: SplitRule
) -> None:
    plan = plan_of(units, by)
    train, validation, test = bytes_of(units, plan)
    total = sum(units.values())
    assert (validation > 0, test > 0) == (by.validation_fraction > 0, by.test_fraction > 0)
    assert train > 0
    missed = abs(validation - by.validation_fraction * total)
    missed += abs(test - by.test_fraction * total)
    from_first, *_ = found = best_from_each(units, by)
    if from_first <= NEAR * total:
        assert plan.first == 0
        assert missed == pytest.approx(from_first, abs=1e-6)
    else:
        assert missed == pytest.approx(min(found), abs=1e-6)


@given(UNEVEN, RULES, st.randoms(use_true_random=False))
def test_the_order_of_few_units_and_how_often_they_are_counted_do_not_matter(
    units: Units, by: SplitRule, random: Random
) -> None:
    shuffled = list(units.items())
    random.shuffle(shuffled)
    halves = ByteHistogram(by)
    for part in (shuffled[::2], shuffled[1::2]):
        hashes, sizes = ([pair[place] for pair in part] for place in (0, 1))
        halves.add(np.array(hashes, dtype=np.uint64), np.array(sizes, dtype=np.uint32))
    assert halves.plan() == plan_of(units, by)


@pytest.mark.parametrize("seed", range(6))
def test_a_title_above_one_long_line_is_held_out_and_not_the_line(
    write_corpus: Write, seed: int
) -> None:
    line = "word " * 3_000
    parts = divide(write_corpus(f"The title\n{line}\n".encode()), rule(0.01, 0.0, seed))
    assert parts[Split.VALIDATION] == ["The title\n"]


def test_the_lowest_of_equally_good_beginnings_is_taken() -> None:
    units = dict.fromkeys(range(10), 100)
    assert all(plan_of(units, rule(0.01, 0.15, seed)).first == 0 for seed in range(20))


def test_a_corpus_of_many_units_keeps_the_split_that_begins_with_the_first() -> None:
    by = rule(0.01, 0.15)
    units = dict.fromkeys(range(2 * FEW), 100)
    hashes = np.array(list(units), dtype=np.uint64)
    lowest = int(np.argmin(keys_of(hashes, by)))
    plan = plan_of(units | {lowest: 1_000_000}, by)
    assert plan.first == 0
    assert plan.assign(hashes)[lowest] == Split.VALIDATION
