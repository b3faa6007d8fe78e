"""The rows of a curve, each told once."""

from __future__ import annotations

from pathlib import Path

from tests.reports import evaluation, step
from tests.tracking.attempts import (
    RUN,
)
from trainer_app.tracking.curve import Curve
from trainer_app.tracking.wire import Step


def test_what_the_server_has_already_is_not_sent_again(tmp_path: Path) -> None:
    curve = Curve(tmp_path / "tracked.json")
    curve.step(Step.of(step(10)))
    curve.skip(20)  # as a run says that was resumed
    curve.step(Step.of(step(20)))
    curve.evaluation(evaluation(20, 1.0))
    curve.step(Step.of(step(30)))

    assert [row["global_step"] for row in curve.rows(last=True)] == [30]
    assert curve.logged == 30


def test_an_evaluation_that_is_redone_is_told_once(tmp_path: Path) -> None:
    curve = Curve(tmp_path / "tracked.json")
    for report in (step(10), step(20)):
        curve.step(Step.of(report))
    curve.evaluation(evaluation(10, 1.0))

    assert ["val_loss" in row for row in curve.rows(last=True)] == [False, False]


def test_a_run_whose_folder_is_gone_gets_no_new_one(tmp_path: Path) -> None:
    memory = tmp_path / "runs" / RUN / "tracked.json"
    curve = Curve(memory)
    curve.step(Step.of(step(1)))
    assert [row["global_step"] for row in curve.rows(last=True)] == [1]
    assert not memory.parent.exists()
