"""A run that gets further is charged with nothing that happened before."""

from __future__ import annotations

from collections.abc import Callable

from trainer_app.store import lease, pauses, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, Progress, Status

Elapse = Callable[[float], None]


def _lose_at(database: Database, run_id: str, elapse: Elapse, *, step: int, saved: int) -> Status:
    """Lose one more worker, at a step and with a checkpoint."""
    claim = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    change = Progress(step=step, checkpoint=f"step-{saved}", checkpoint_step=saved)
    lease.progress(database, claim, change)
    elapse(61)
    (reaped,) = lease.reap(database, max_crashes=3)
    elapse(121)  # the longest back-off
    return reaped.status


def test_workers_lost_minutes_apart_do_not_fail_a_run_that_gets_further_each_time(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    for step in range(1_000, 8_000, 1_000):
        fate = _lose_at(database, run_id, elapse, step=step, saved=step - 10)
        assert fate is Status.QUEUED
        assert runs.get(database, run_id).crashes == 1


def test_a_run_that_never_gets_beyond_the_step_it_died_at_fails_in_the_end(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    steps_and_saved = [(500, 490), (400, 390), (505, 500)]

    fates = [
        _lose_at(database, run_id, elapse, step=step, saved=saved)
        for step, saved in steps_and_saved
    ]

    assert fates == [Status.QUEUED, Status.QUEUED, Status.FAILED]
    assert runs.get(database, run_id).error_code == "WORKER_LOST"


def _fail_at(database: Database, run_id: str, *, step: int, saved: int) -> int:
    """Fail one more attempt that had come so far; how many retries counted against it."""
    claim = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    change = Progress(step=step, checkpoint=f"step-{saved}", checkpoint_step=saved)
    lease.progress(database, claim, change)
    counted = lease.retries(database, claim)
    lease.retry_later(database, claim, delay_seconds=0, message="again")
    return counted


def test_retries_are_forgiven_to_a_run_that_got_further_since(
    database: Database, run_id: str
) -> None:
    counted = [
        _fail_at(database, run_id, step=step, saved=step - 10) for step in (1_000, 2_000, 3_000)
    ]
    assert counted == [0, 0, 0]


def test_retries_count_as_long_as_no_checkpoint_is_beyond_the_step_of_the_last(
    database: Database, run_id: str
) -> None:
    # The second had told less than it had saved, the fourth saves just what it had.
    steps_and_saved = [(500, 490), (495, 500), (400, 390), (510, 500), (520, 511)]
    counted = [
        _fail_at(database, run_id, step=step, saved=saved) for step, saved in steps_and_saved
    ]
    assert counted == [0, 1, 2, 3, 0]


def test_a_checkpoint_that_was_told_late_forgives_nothing_when_it_is_told_again(
    database: Database, run_id: str
) -> None:
    assert [_fail_at(database, run_id, step=35, saved=38) for _ in range(3)] == [0, 1, 2]


def test_crashes_and_retries_are_forgiven_together(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    lease.progress(database, claim, Progress(step=100))
    elapse(61)
    lease.reap(database, max_crashes=3)
    assert _fail_at(database, claim.job_id, step=100, saved=90) == 0
    again = lease.claim(database, claim.job_id, "worker:1", lease_seconds=60)
    assert again is not None
    assert runs.get(database, again.job_id).crashes == 1
    assert lease.retries(database, again) == 1

    lease.progress(database, again, Progress(checkpoint="step-101", checkpoint_step=101))

    assert lease.retries(database, again) == 0
    assert runs.get(database, again.job_id).crashes == 0


def test_a_resumed_run_is_forgiven_from_any_step_on(database: Database, claim: Claim) -> None:
    lease.progress(database, claim, Progress(step=500, checkpoint="a", checkpoint_step=490))
    lease.expire(database, claim.job_id, owner_prefix=claim.owner)
    lease.reap(database, max_crashes=1)
    pauses.resume(database, claim.job_id)
    for saved in (491, 492, 493):
        again = lease.claim(database, claim.job_id, "worker:2", lease_seconds=60)
        assert again is not None
        change = Progress(step=saved, checkpoint="b", checkpoint_step=saved)
        lease.progress(database, again, change)
        lease.expire(database, claim.job_id, owner_prefix="worker:2")
        assert lease.reap(database, max_crashes=2)[0].status is Status.QUEUED
