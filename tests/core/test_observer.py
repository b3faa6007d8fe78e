"""Several observers as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tests.reports import evaluation
from trainer_app.core.observer import (
    CheckpointReport,
    Observers,
    Silent,
    StopReason,
)

if TYPE_CHECKING:
    from tests.training_bench import Bench, Recorder

MakeRecorder: TypeAlias = "type[Recorder]"


def test_each_hears_all_that_a_run_tells(bench: Bench, recorder: MakeRecorder) -> None:
    first, second = recorder(), recorder()
    bench.fit(bench.spec, Observers([first, Silent(), second]), checkpoint_seconds=0.0)
    assert first == second
    assert first.messages
    assert len(first.starts) == 1
    assert len(first.steps) == 12
    assert len(first.evaluations) == 3
    assert len(first.checkpoints) == 11


def test_the_first_that_asks_to_stop_says_why(recorder: MakeRecorder) -> None:
    class Asking(Silent):
        def should_stop(self) -> StopReason | None:
            return StopReason.FENCED

    assert Observers([recorder(), Asking()]).should_stop() is StopReason.FENCED
    assert Observers([recorder(), Silent()]).should_stop() is None


def test_a_silent_observer_takes_all_and_says_nothing() -> None:
    silent = Silent()
    silent.on_message("training")
    silent.on_steps([])
    silent.on_evaluation(evaluation(1))
    silent.on_checkpoint(CheckpointReport(path=Path("step-1"), step=1, seconds=0.1))
    assert silent.should_stop() is None
