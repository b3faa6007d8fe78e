"""What a run's observers say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tasks import process
from tasks.reporting import EventReporter, points_of, resumed
from tests.reports import START, evaluation, step
from trainer_app.store.lease import Claim, JobKind

_DAMAGED = "checkpoint step-000000405-attempt-1 is damaged and left out"


def claim(attempt: int, cause: str | None) -> Claim:
    return Claim(
        job_id="run-1",
        kind=JobKind.TRAIN,
        attempt=attempt,
        owner="train-0@here:1",
        spec="{}",
        user_id=0,
        queue="trainer",
        run_id=None,
        created_at=0.0,
        request_id=None,
        cause=cause,
    )


@pytest.mark.parametrize(
    ("attempt", "cause", "said"),
    [
        (1, None, None),
        (
            2,
            "worker lost at step 412",
            "attempt 2: worker lost at step 412, resumed from 400",
        ),
        (3, None, "attempt 3: interrupted, resumed from 400"),  # by a version that told no cause
    ],
)
def test_an_attempt_that_goes_on_says_why_and_from_where(
    attempt: int, cause: str | None, said: str | None
) -> None:
    start = replace(START, first_step=400, resumed_from="step-000000400-attempt-1")
    assert resumed(claim(attempt, cause), start) == said


@pytest.mark.parametrize(
    ("told_of", "left_out", "said"),
    [
        ("step-000000410-attempt-1", (), "; the checkpoint of step 410 is gone"),
        (
            "step-000000410-attempt-1",
            ("checkpoint step-000000410-attempt-1 is damaged and left out",),
            "; checkpoint step-000000410-attempt-1 is damaged and left out",
        ),
        (
            "step-000000410-attempt-1",
            (_DAMAGED,),
            f"; {_DAMAGED}; the checkpoint of step 410 is gone",
        ),
        ("step-000000400-attempt-1", (), ""),
        ("step-000000390-attempt-1", (), ""),  # its worker died before it told of the next
        ("no name of ours", (), ""),
    ],
)
def test_an_attempt_says_that_the_checkpoint_which_it_should_go_on_from_is_gone(
    told_of: str, left_out: tuple[str, ...], said: str
) -> None:
    start = replace(
        START, first_step=400, resumed_from="step-000000400-attempt-1", left_out=left_out
    )
    claimed = replace(claim(2, "paused"), checkpoint=told_of)
    assert resumed(claimed, start) == f"attempt 2: paused, resumed from 400{said}"


@pytest.mark.usefixtures("worker")
def test_an_evaluation_is_told_with_the_step_before_it_also_where_that_was_another_attempt_s(
    sent_events: Callable[[], list[dict[str, object]]],
) -> None:
    events = process.job_events(JobKind.TRAIN, job_id="run-1", user_id=0, queue_name="trainer")
    reporter = EventReporter(events)
    reporter.on_start(START)
    reporter.on_evaluation(evaluation(6))  # an attempt that goes on behind the last step
    reporter.on_steps([step(8)])
    reporter.on_evaluation(evaluation(8))

    told = [event for event in sent_events() if "val_loss" in event]
    assert [(event["step"], event["train_loss"]) for event in told] == [(6, 2.0), (8, 2.0)]
    assert [event["samples_per_sec"] for event in told] == [0.0, step(8).samples_per_sec]


@pytest.mark.usefixtures("worker")
def test_a_step_that_is_evaluated_is_told_once(
    sent_events: Callable[[], list[dict[str, object]]],
) -> None:
    events = process.job_events(JobKind.TRAIN, job_id="run-1", user_id=0, queue_name="trainer")
    reporter = EventReporter(events)
    reporter.on_start(START)
    reporter.on_steps([step(7), replace(step(8), to_be_evaluated=True)])
    reporter.on_evaluation(evaluation(8, loss=2.0))

    told = [event for event in sent_events() if event["type"] == "trainer.metrics.progress.v1"]
    assert [(event["step"], event["val_loss"]) for event in told] == [(8, 2.0)]


def test_the_curve_has_the_steps_that_logging_steps_keeps() -> None:
    steps = [replace(step(number), in_curve=number in (1, 10)) for number in range(1, 12)]
    assert [point.step for point in points_of(steps)] == [1, 10]
