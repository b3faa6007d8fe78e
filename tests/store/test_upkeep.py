"""Lost workers are noticed, and queued jobs are announced until somebody takes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest
from sqlalchemy import select, update

from tests.store.kinds import make_later
from trainer_app.core.spec import TokenizerSpec
from trainer_app.errors import LeaseLost
from trainer_app.store import lease, pauses, runs, tokenizers, upkeep
from trainer_app.store.database import NOW, Database
from trainer_app.store.lease import Claim, JobKind, Progress, Published, Reaped, Status, Wakeup
from trainer_app.store.tables import JobRow

Elapse = Callable[[float], None]

_DAY = 86_400.0


class AnotherRun(Protocol):
    def __call__(self, **fields: object) -> str: ...


def _lose_a_worker(database: Database, run_id: str, elapse: Elapse) -> list[Reaped]:
    assert lease.claim(database, run_id, "worker:1", lease_seconds=60) is not None
    elapse(61)
    return lease.reap(database, max_crashes=3)


def _seconds_to_wait(database: Database, run_id: str) -> float:
    with database.read() as connection:
        wait = connection.scalar(select(JobRow.not_before - NOW).where(JobRow.id == run_id))
    assert wait is not None
    return max(0.0, wait)


def test_a_run_whose_worker_is_lost_is_queued_again(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    lease.progress(database, claim, Progress(step=412))
    assert lease.reap(database, max_crashes=3) == []
    elapse(61)
    assert lease.reap(database, max_crashes=3) == [
        Reaped(
            job_id=claim.job_id,
            kind=JobKind.TRAIN,
            run_id=None,
            user_id=0,
            request_id=None,
            queue="trainer",
            status=Status.QUEUED,
            attempt=1,
            message="attempt 1: worker lost at step 412; queued again",
        )
    ]
    run = runs.get(database, claim.job_id)
    assert (run.status, run.crashes) == (Status.QUEUED, 1)
    assert run.message == "attempt 1: worker lost at step 412; queued again"
    assert lease.reap(database, max_crashes=3) == []


def test_a_lost_run_had_come_as_far_as_its_checkpoint_whatever_it_had_told(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    lease.progress(database, claim, Progress(step=35, checkpoint="step-38", checkpoint_step=38))
    elapse(61)

    assert lease.reap(database, max_crashes=3)[0].message == (
        "attempt 1: worker lost at step 38; queued again"
    )


def test_a_run_that_loses_its_worker_while_it_is_to_be_paused_says_that_it_is_paused(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    pauses.pause(database, claim.job_id)
    elapse(61)

    [lost] = lease.reap(database, max_crashes=3)

    assert lost.message == "attempt 1: worker lost at step 0; paused"
    run = runs.get(database, claim.job_id)
    assert (run.status, run.paused, run.message) == (Status.QUEUED, True, lost.message)


def test_each_lost_worker_makes_the_next_attempt_wait_longer(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    waits = []
    for _ in range(5):
        assert lease.claim(database, run_id, "worker:1", lease_seconds=60) is not None
        elapse(61)
        lease.reap(database, max_crashes=100)
        waits.append(round(_seconds_to_wait(database, run_id)))
        elapse(waits[-1] + 1)
    assert waits == [0, 5, 30, 120, 120]


def test_a_run_that_loses_every_worker_fails(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    fates = []
    for _ in range(3):
        fates += [reaped.status for reaped in _lose_a_worker(database, run_id, elapse)]
        elapse(60)
    assert fates == [Status.QUEUED, Status.QUEUED, Status.FAILED]
    run = runs.get(database, run_id)
    assert (run.status, run.error_code) == (Status.FAILED, "WORKER_LOST")
    assert run.message == "lost its worker 3 times; last at step 0"
    assert run.completed_at is not None
    assert lease.due(database) == []


def test_one_crash_may_be_one_too_many(database: Database, claim: Claim, elapse: Elapse) -> None:
    elapse(61)
    assert (
        lease.reap(database, max_crashes=1)[0].message == "lost its worker 1 time; last at step 0"
    )


def test_a_job_without_steps_names_none(database: Database, elapse: Elapse) -> None:
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_path="a", corpus_sha256="0" * 64)
    job_id = tokenizers.create(database, spec, queue="trainer.light").job_id
    reaped = _lose_a_worker(database, job_id, elapse)[0]
    assert (reaped.kind, reaped.message) == (
        JobKind.TOKENIZER,
        "attempt 1: worker lost; queued again",
    )
    assert lease.claim(database, job_id, "worker:1", lease_seconds=60) is not None
    elapse(61)
    assert lease.reap(database, max_crashes=2)[0].message == "lost its worker 2 times"


def test_a_lost_run_that_was_to_be_cancelled_is(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    lease.request_cancel(database, claim.job_id)
    elapse(61)
    assert lease.reap(database, max_crashes=1)[0].status is Status.CANCELLED
    run = runs.get(database, claim.job_id)
    assert (run.status, run.error_code) == (Status.CANCELLED, None)


def test_of_many_reapers_at_once_one_reaps(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    elapse(61)
    together = threading.Barrier(6)

    def race(_number: int) -> list[Reaped]:
        together.wait(10)
        return lease.reap(database, max_crashes=3)

    with ThreadPoolExecutor(6) as pool:
        assert sum(len(reaped) for reaped in pool.map(race, range(6))) == 1
    assert runs.get(database, claim.job_id).crashes == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_worker_frozen_in_a_write_does_not_stop_the_reaper(
    database: Database, claim: Claim, another_run: AnotherRun, elapse: Elapse
) -> None:
    other = another_run()
    assert lease.claim(database, other, "worker:2", lease_seconds=60) is not None
    elapse(61)
    with database.write() as frozen:
        frozen.execute(update(JobRow).where(JobRow.id == claim.job_id).values(message="frozen"))
        assert [reaped.job_id for reaped in lease.reap(database, max_crashes=3)] == [other]
    assert [reaped.job_id for reaped in lease.reap(database, max_crashes=3)] == [claim.job_id]


def test_a_clock_that_is_set_back_keeps_no_dead_worker_alive(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    elapse(-86_400)  # all times are now a day ahead of the clock
    assert lease.reap(database, max_crashes=3) == []
    assert lease.beat(database, claim, lease_seconds=60) is False
    elapse(-86_400)
    assert lease.reap(database, max_crashes=3) == []
    elapse(61)
    assert [reaped.job_id for reaped in lease.reap(database, max_crashes=3)] == [claim.job_id]


def test_a_clock_that_is_set_back_keeps_no_job_waiting(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    lease.retry_later(database, claim, delay_seconds=300, message="again")
    elapse(-86_400)
    lease.reap(database, max_crashes=3)

    assert round(_seconds_to_wait(database, claim.job_id)) == 300
    assert lease.due(database) == []
    elapse(301)
    assert [wakeup.job_id for wakeup in lease.due(database)] == [claim.job_id]


@pytest.mark.parametrize("setback", ["retry", "crash"])
def test_a_back_off_given_by_a_clock_that_was_ahead_is_as_long_as_it_was_to_be(
    database: Database, claim: Claim, elapse: Elapse, setback: str
) -> None:
    with database.write() as connection:
        connection.execute(update(JobRow).values(crashes=1))
    elapse(_DAY)  # from the last beat to the setback, as the clock has it
    if setback == "retry":
        lease.retry_later(database, claim, delay_seconds=5, message="again")
    else:
        assert len(lease.reap(database, max_crashes=3)) == 1

    elapse(-_DAY)  # it is set right
    lease.reap(database, max_crashes=3)

    assert 0 < _seconds_to_wait(database, claim.job_id) <= 5
    elapse(6)
    assert [wakeup.job_id for wakeup in lease.due(database)] == [claim.job_id]


def test_a_lease_ended_by_a_clock_that_was_ahead_stays_ended(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    elapse(_DAY)
    assert lease.expire(database, claim.job_id, owner_prefix=claim.owner)
    elapse(-_DAY)
    assert [reaped.job_id for reaped in lease.reap(database, max_crashes=3)] == [claim.job_id]


def test_a_queued_run_is_due_until_it_is_announced(database: Database, run_id: str) -> None:
    [wakeup] = lease.due(database)
    told = (wakeup.job_id, wakeup.kind, wakeup.queue, wakeup.priority)
    assert told == (run_id, JobKind.TRAIN, "trainer", 0)
    assert lease.due(database) == []


def test_an_unanswered_announcement_is_repeated_later_each_time(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    lease.due(database)
    for wait in (60, 120, 240, 480, 900, 900):
        elapse(wait - 2)
        assert lease.due(database) == []
        elapse(3)
        assert [wakeup.job_id for wakeup in lease.due(database)] == [run_id]


def test_an_attempt_starts_the_waits_anew(database: Database, run_id: str, elapse: Elapse) -> None:
    for _ in range(5):
        lease.due(database)
        elapse(1_000)
    _lose_a_worker(database, run_id, elapse)
    assert len(lease.due(database)) == 1
    elapse(61)
    assert len(lease.due(database)) == 1


def test_an_announcement_by_a_clock_since_set_back_counts_as_unanswered(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    lease.due(database)
    elapse(-86_400)
    assert [wakeup.job_id for wakeup in lease.due(database)] == [run_id]


def test_when_redis_was_wiped_all_that_is_queued_is_announced(
    database: Database, another_run: AnotherRun
) -> None:
    queued = {another_run() for _ in range(5)}
    running = another_run()
    assert lease.claim(database, running, "worker:1", lease_seconds=60) is not None
    assert len(lease.due(database)) == 5
    assert {wakeup.job_id for wakeup in lease.due(database, all_queued=True)} == queued


def test_urgent_jobs_are_announced_first_then_older_ones(
    database: Database, another_run: AnotherRun
) -> None:
    first, second, urgent = another_run(), another_run(), another_run(priority=9)
    assert [wakeup.job_id for wakeup in lease.due(database)] == [urgent, first, second]


def test_one_job_can_be_announced_alone(database: Database, another_run: AnotherRun) -> None:
    one, other = another_run(), another_run()
    assert [wakeup.job_id for wakeup in lease.due(database, job_id=other)] == [other]
    assert [wakeup.job_id for wakeup in lease.due(database)] == [one]


def test_of_many_dispatchers_at_once_one_announces(database: Database, run_id: str) -> None:
    together = threading.Barrier(6)

    def race(_number: int) -> list[Wakeup]:
        together.wait(10)
        return lease.due(database)

    with ThreadPoolExecutor(6) as pool:
        assert sum(len(wakeups) for wakeups in pool.map(race, range(6))) == 1


def test_a_job_of_a_kind_that_a_later_version_has_is_not_claimed(
    database: Database, run_id: str
) -> None:
    make_later(database, run_id)
    assert lease.claim(database, run_id, "worker:1", lease_seconds=60) is None


def test_jobs_of_a_kind_that_a_later_version_has_are_left_to_it_and_keep_up_no_others(
    database: Database, another_run: AnotherRun, elapse: Elapse
) -> None:
    lost, queued, known = another_run(), another_run(), another_run()
    assert lease.claim(database, lost, "newer:1", lease_seconds=60) is not None
    for job_id in (lost, queued):
        make_later(database, job_id)
    elapse(61)

    assert lease.reap(database, max_crashes=3) == []
    assert [wakeup.job_id for wakeup in lease.due(database)] == [known]


@pytest.mark.parametrize("not_sent", [None, "the model was not uploaded"])
def test_a_run_that_has_published_its_model_has_completed_when_its_worker_is_lost(
    database: Database, claim: Claim, elapse: Elapse, not_sent: str | None
) -> None:
    lease.record_published(database, claim, Published(result='{"steps": 3}', sha256="a" * 64))
    lease.request_cancel(database, claim.job_id)
    elapse(61)

    (reaped,) = lease.reap(database, max_crashes=1, not_sent=not_sent)

    sealed = '{"steps": 3, "attempt": 1}'
    assert (reaped.status, reaped.result) == (Status.COMPLETED, sealed)
    assert reaped.message == "attempt 1: worker lost after it had published the model; completed"
    run = runs.get(database, claim.job_id)
    assert (run.status, run.crashes, run.progress, run.eta_sec) == ("completed", 0, 100, None)
    assert (run.artifact_storage, run.artifact_sha256) == ("local", "a" * 64)
    code = None if not_sent is None else "ARTIFACT_UPLOAD_FAILED"
    assert (run.error_code, run.message, run.result) == (code, not_sent or "", sealed)


def claim_as_the_version_before_does(database: Database, job_id: str) -> None:
    """With the result left as it is."""
    taken = {"status": Status.RUNNING, "owner": "worker:2", "lease_until": NOW + 60}
    with database.write() as connection:
        connection.execute(
            update(JobRow).where(JobRow.id == job_id).values(attempt=JobRow.attempt + 1, **taken)
        )


def claim_as_this_version_does(database: Database, job_id: str) -> None:
    assert lease.claim(database, job_id, "worker:2", lease_seconds=60) is not None


@pytest.mark.parametrize(
    "claim_again", [claim_as_this_version_does, claim_as_the_version_before_does]
)
def test_what_an_earlier_attempt_has_published_does_not_complete_a_later_one(
    database: Database,
    claim: Claim,
    elapse: Elapse,
    claim_again: Callable[[Database, str], None],
) -> None:
    lease.record_published(database, claim, Published(result="{}", sha256="a" * 64))
    lease.hand_back(database, claim, message="as the version before does")
    claim_again(database, claim.job_id)
    elapse(61)

    (reaped,) = lease.reap(database, max_crashes=3)

    assert (reaped.status, reaped.result) == (Status.QUEUED, None)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_run_whose_model_is_found_in_its_place_has_completed_when_its_worker_is_lost(
    database: Database, claim: Claim, elapse: Elapse, cancelled: bool
) -> None:
    if cancelled:
        lease.request_cancel(database, claim.job_id)
    elapse(61)
    looked: list[str] = []

    def fence(job_id: str, attempt: int) -> None:
        assert (job_id, attempt) == (claim.job_id, claim.attempt)
        looked.append("fenced")

    def find(run_id: str) -> Published:
        assert run_id == claim.job_id
        looked.append("found")
        return Published(result='{"steps": 3}', sha256="a" * 64)

    (reaped,) = lease.reap(database, max_crashes=1, fence=fence, left_in_place=find)

    assert looked == ["fenced", "found"]
    assert (reaped.status, reaped.result) == (Status.COMPLETED, '{"steps": 3}')
    run = runs.get(database, claim.job_id)
    assert (run.status, run.crashes, run.progress) == ("completed", 0, 100)
    assert (run.artifact_storage, run.artifact_sha256) == ("local", "a" * 64)
    assert run.result == '{"steps": 3}'


def test_who_has_lost_the_lease_has_published_nothing_that_counts(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    elapse(61)
    lease.reap(database, max_crashes=3)

    with pytest.raises(LeaseLost):
        lease.record_published(database, claim, Published(result="{}", sha256="a" * 64))

    run = runs.get(database, claim.job_id)
    assert (run.result, run.artifact_sha256) == (None, None)


def test_leases_that_ran_out_are_told_from_those_that_were_ended(
    database: Database, claim: Claim, another_run: AnotherRun, elapse: Elapse
) -> None:
    ended = another_run()
    assert lease.claim(database, ended, "worker:2", lease_seconds=60) is not None
    before = database.now()
    elapse(61)
    assert lease.expire(database, ended, owner_prefix="worker:2")

    assert upkeep.run_out(database, as_of=before - 60) == []
    assert upkeep.run_out(database, as_of=before) == [claim.job_id]
    [reaped] = lease.reap(database, max_crashes=3, as_of=upkeep.EXPIRED)
    assert reaped.job_id == ended
    [reaped] = lease.reap(database, max_crashes=3, as_of=before)
    assert reaped.job_id == claim.job_id
