"""What a run's observers say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.reporting import points_of, resumed
from tests.reports import START, step
from trainer_app.store.lease import Claim, JobKind


def claim(attempt: int, cause: str | None) -> Claim:
    return Claim(
        job_id="run-1",
        kind=JobKind.TRAIN,
        attempt=attempt,
        owner="train-0@here:1",
        spec="{}",
        checkpoint=None,
        user_id=0,
        queue="trainer",
        run_id=None,
        crashes=0,
        retries=0,
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


def test_the_curve_has_the_steps_that_logging_steps_keeps() -> None:
    steps = [replace(step(number), in_curve=number in (1, 10)) for number in range(1, 12)]
    assert [point.step for point in points_of(steps)] == [1, 10]
