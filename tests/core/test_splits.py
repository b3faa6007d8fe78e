"""Which text is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from trainer_app.core.corpus import read_units
from trainer_app.core.split_texts import plan_split, split_texts
from trainer_app.core.splits import Split, SplitRule
from trainer_app.core.stopping import never
from trainer_app.errors import CorpusTooShort

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
