"""What a run's observers say."""

from __future__ import annotations

import pytest

from tasks.reporting import resumed
from trainer_app.core.observer import StartReport
from trainer_app.store.lease import Claim, JobKind

START = StartReport(
    model_family="gpt2",
    model_size="tiny",
    parameters=1,
    total_epochs=1,
    total_steps=1_000,
    first_step=400,
    batch_size=1,
    learning_rate=0.1,
    max_seq_len=8,
    train_tokens=1,
    validation_tokens=0,
    test_tokens=0,
    device="cpu",
    device_name="cpu",
    precision="fp32",
    threads=1,
    resumed_from="step-000000400-attempt-1",
)


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
    assert resumed(claim(attempt, cause), START) == said
