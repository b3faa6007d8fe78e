"""Each move of the lease, and that a stale token can make none of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from trainer_app.core.spec import TrainSpec
from trainer_app.errors import (
    AlreadyFinished,
    DataNotFound,
    LeaseLost,
    NotFound,
    RunNotFound,
    TokenizerNotFound,
)
from trainer_app.store import lease, metrics, runs
from trainer_app.store.database import NOW, Database
from trainer_app.store.lease import (
    Artifact,
    Claim,
    Ended,
    JobKind,
    MetricPoint,
    Progress,
    Status,
)
from trainer_app.store.tables import JobRow

Elapse = Callable[[float], None]
Move = Callable[[Database, Claim], object]


def _lease_left(database: Database, run_id: str) -> float:
    with database.read() as connection:
        left = connection.scalar(select(JobRow.lease_until - NOW).where(JobRow.id == run_id))
    assert left is not None
    return left


def test_an_attempt_that_another_has_followed_has_ended_nothing(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    assert lease.stands(database, claim, messages=[""]) is None
    lease.hand_back(database, claim, message="handed back")
    ended = Ended(status=Status.QUEUED, message="handed back")
    assert lease.stands(database, claim, messages=["paused", "handed back"]) == ended
    assert lease.stands(database, claim, messages=["paused at step 3"]) is None

    assert lease.claim(database, claim.job_id, "worker:2", lease_seconds=60) is not None

    assert lease.stands(database, claim, messages=["handed back"]) is None


def test_a_claim_starts_an_attempt(database: Database, run_id: str) -> None:
    claim = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    run = runs.get(database, run_id)
    assert claim is not None
    assert (claim.job_id, claim.kind, claim.attempt) == (run_id, JobKind.TRAIN, 1)
    assert (claim.spec, claim.queue) == (run.spec.to_json(), "trainer")
    assert (run.status, run.attempt) == (Status.RUNNING, 1)
    assert run.started_at is not None
    assert run.started_at >= run.created_at == claim.created_at
    assert 59 < _lease_left(database, run_id) <= 60


def test_a_message_that_comes_twice_gives_one_claim(database: Database, claim: Claim) -> None:
    assert lease.claim(database, claim.job_id, "worker:2", lease_seconds=60) is None


def test_of_ten_claims_at_once_one_wins(database: Database, run_id: str) -> None:
    together = threading.Barrier(10)

    def race(number: int) -> Claim | None:
        together.wait(10)
        return lease.claim(database, run_id, f"worker:{number}", lease_seconds=60)

    with ThreadPoolExecutor(10) as pool:
        claims = [claim for claim in pool.map(race, range(10)) if claim is not None]
    assert [claim.attempt for claim in claims] == [1]


def test_an_unknown_job_cannot_be_claimed(database: Database) -> None:
    assert lease.claim(database, "run-unknown", "worker:1", lease_seconds=60) is None


def test_a_beat_renews_the_lease(database: Database, claim: Claim, elapse: Elapse) -> None:
    elapse(50)
    assert lease.beat(database, claim, lease_seconds=60) is False
    assert 59 < _lease_left(database, claim.job_id) <= 60


def test_a_beat_after_the_lease_is_over_keeps_it_if_nobody_has_reaped(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    elapse(600)
    lease.beat(database, claim, lease_seconds=60)
    assert lease.reap(database, max_crashes=3) == []


def test_a_request_to_cancel_reaches_the_worker(database: Database, claim: Claim) -> None:
    assert lease.cancel_requested(database, claim) is False
    assert lease.request_cancel(database, claim.job_id) is Status.RUNNING
    assert lease.cancel_requested(database, claim) is True
    assert lease.beat(database, claim, lease_seconds=60) is True


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_job_ends_as_its_worker_says(database: Database, claim: Claim, status: str) -> None:
    lease.finish(database, claim, status, result='{"a": 1}', error_code="DISK_FULL", message="full")
    run = runs.get(database, claim.job_id)
    assert (run.status, run.result) == (status, '{"a": 1}')
    assert (run.error_code, run.message) == ("DISK_FULL", "full")
    assert run.completed_at is not None
    assert run.completed_at >= run.created_at
    assert run.progress == (100 if status == "completed" else 0)


def test_a_finished_run_says_where_its_artifact_is(database: Database, claim: Claim) -> None:
    lease.finish(database, claim, "completed", artifact=Artifact(storage="local", sha256="f" * 64))
    run = runs.get(database, claim.job_id)
    assert (run.artifact_storage, run.artifact_sha256) == ("local", "f" * 64)


def test_a_job_cannot_end_as_something_else(database: Database, claim: Claim) -> None:
    with pytest.raises(ValueError, match="stopped"):
        lease.finish(database, claim, "stopped")
    with pytest.raises(ValueError, match="queued"):
        lease.finish(database, claim, "queued")
    assert runs.get(database, claim.job_id).status is Status.RUNNING


def test_a_message_that_no_database_takes_is_made_one_that_it_does(
    database: Database, claim: Claim
) -> None:
    lease.finish(database, claim, "failed", message="a\0b\ud800c" + "x" * 10_000)
    message = runs.get(database, claim.job_id).message
    assert message.startswith("a\N{REPLACEMENT CHARACTER}b?cx")
    assert len(message) == 4_000


def test_a_job_that_is_handed_back_waits_for_nothing(database: Database, claim: Claim) -> None:
    ended = lease.hand_back(database, claim, message="drained")
    assert ended == Ended(status=Status.QUEUED, message="drained")
    run = runs.get(database, claim.job_id)
    assert (run.status, run.crashes, run.message) == (Status.QUEUED, 0, "drained")
    assert [wakeup.job_id for wakeup in lease.due(database)] == [claim.job_id]
    again = lease.claim(database, claim.job_id, "worker:2", lease_seconds=60)
    assert again is not None
    assert (again.attempt, lease.retries(database, again)) == (2, 0)
    assert runs.get(database, claim.job_id).started_at == run.started_at


def test_a_retry_waits_for_its_delay(database: Database, claim: Claim, elapse: Elapse) -> None:
    ended = lease.retry_later(database, claim, delay_seconds=300, message="again in 300 s")
    assert ended == Ended(status=Status.QUEUED, message="again in 300 s")
    assert lease.due(database) == []
    assert lease.claim(database, claim.job_id, "worker:2", lease_seconds=60) is None
    elapse(301)
    assert [wakeup.job_id for wakeup in lease.due(database)] == [claim.job_id]
    again = lease.claim(database, claim.job_id, "worker:2", lease_seconds=60)
    assert again is not None
    assert lease.retries(database, again) == 1
    assert runs.get(database, claim.job_id).crashes == 0


@pytest.mark.parametrize(
    "give_up",
    [
        lambda db, claim: lease.hand_back(db, claim, message=""),
        lambda db, claim: lease.retry_later(db, claim, delay_seconds=5, message=""),
    ],
    ids=["hand_back", "retry_later"],
)
def test_a_job_that_was_to_be_cancelled_is_not_queued_again(
    database: Database, claim: Claim, give_up: Callable[[Database, Claim], Ended]
) -> None:
    lease.request_cancel(database, claim.job_id)
    assert give_up(database, claim) == Ended(status=Status.CANCELLED, message="cancelled")
    run = runs.get(database, claim.job_id)
    assert run.status is Status.CANCELLED
    assert run.completed_at is not None


def test_progress_and_points_are_recorded_together(database: Database, claim: Claim) -> None:
    change = Progress(
        message="training",
        checkpoint="step-10",
        checkpoint_step=10,
        progress=5,
        step=12,
        total_steps=200,
        epoch=0,
        train_loss=2.5,
        tokens_per_sec=1e4,
        eta_sec=60.0,
    )
    lease.progress(database, claim, change, [MetricPoint(step=12, train_loss=2.5)])
    lease.progress(database, claim, Progress(val_loss=2.4))
    run = runs.get(database, claim.job_id)
    assert (run.message, run.checkpoint, run.checkpoint_step) == ("training", "step-10", 10)
    assert (run.progress, run.step, run.total_steps, run.epoch) == (5, 12, 200, 0)
    assert (run.train_loss, run.val_loss) == (2.5, 2.4)
    assert (run.tokens_per_sec, run.eta_sec) == (1e4, 60.0)
    assert [point.train_loss for point in metrics.curve(database, claim.job_id)] == [2.5]


def test_a_checkpoint_outlives_its_attempt(database: Database, claim: Claim) -> None:
    lease.progress(database, claim, Progress(checkpoint="step-10"))
    lease.hand_back(database, claim, message="")
    assert lease.claim(database, claim.job_id, "worker:2", lease_seconds=60) is not None
    assert runs.get(database, claim.job_id).checkpoint == "step-10"


def test_values_that_are_not_finite_are_left_out(database: Database, claim: Claim) -> None:
    lease.progress(database, claim, Progress(train_loss=2.5, eta_sec=9.0))
    lease.progress(database, claim, Progress(train_loss=float("nan"), eta_sec=float("inf")))
    run = runs.get(database, claim.job_id)
    assert (run.train_loss, run.eta_sec) == (2.5, 9.0)


def test_newer_progress_overrides_older() -> None:
    merged = Progress(step=1, message="a").merged(Progress(step=2, train_loss=2.5))
    assert merged == Progress(step=2, message="a", train_loss=2.5)


def test_progress_that_cannot_be_written_whole_is_not_written(
    database: Database, claim: Claim
) -> None:
    with pytest.raises(Exception, match="ck_metrics_step_range"):
        lease.progress(database, claim, Progress(step=7), [MetricPoint(step=-1)])
    assert runs.get(database, claim.job_id).step == 0


@pytest.mark.parametrize(
    "move",
    [
        lambda db, claim: lease.beat(db, claim, lease_seconds=60),
        lease.cancel,
        lease.cancel_requested,
        lease.retries,
        lambda db, claim: lease.progress(
            db, claim, Progress(step=99), [MetricPoint(step=99, train_loss=1.0)]
        ),
        lambda db, claim: lease.finish(db, claim, "completed", result="{}"),
        lambda db, claim: lease.hand_back(db, claim, message=""),
        lambda db, claim: lease.retry_later(db, claim, delay_seconds=0, message=""),
        lambda db, claim: lease.settle(db, claim, TrainSpec(corpus_sha256="f" * 64).to_json()),
    ],
    ids=[
        "beat",
        "cancel",
        "cancel_requested",
        "retries",
        "progress",
        "finish",
        "hand_back",
        "retry_later",
        "settle",
    ],
)
def test_a_stale_token_writes_nothing(database: Database, stale: Claim, move: Move) -> None:
    before = runs.get(database, stale.job_id)
    with pytest.raises(LeaseLost, match="attempt 1"):
        move(database, stale)
    assert runs.get(database, stale.job_id) == before
    assert metrics.curve(database, stale.job_id) == []


def test_what_has_ended_cannot_end_again(database: Database, claim: Claim) -> None:
    lease.finish(database, claim, "completed")
    with pytest.raises(LeaseLost):
        lease.finish(database, claim, "failed")


def test_the_lease_of_a_dead_child_is_ended_by_its_parent(database: Database, claim: Claim) -> None:
    assert lease.expire(database, claim.job_id, owner_prefix="other:") is False
    assert lease.reap(database, max_crashes=3) == []
    assert lease.expire(database, claim.job_id, owner_prefix="worker:") is True
    assert [reaped.job_id for reaped in lease.reap(database, max_crashes=3)] == [claim.job_id]
    assert lease.expire(database, claim.job_id, owner_prefix="worker:") is False


def test_a_parent_ends_no_lease_of_an_attempt_after_the_one_that_died(
    database: Database, claim: Claim
) -> None:
    (owned,) = lease.owned(database, "worker")
    assert (owned.job_id, owned.attempt, owned.pid) == (claim.job_id, claim.attempt, 1)
    assert lease.owned(database, "work") == []
    earlier = owned.attempt - 1
    assert not lease.expire(database, owned.job_id, owner_prefix=owned.owner, attempt=earlier)
    assert lease.expire(database, owned.job_id, owner_prefix=owned.owner, attempt=owned.attempt)


def test_a_queued_run_is_cancelled_at_once_and_never_starts(
    database: Database, run_id: str
) -> None:
    assert lease.request_cancel(database, run_id) is Status.CANCELLED
    assert lease.request_cancel(database, run_id) is Status.CANCELLED
    assert lease.claim(database, run_id, "worker:1", lease_seconds=60) is None
    assert lease.due(database) == []
    assert runs.get(database, run_id).message == "cancelled before it started"


def test_of_many_who_cancel_a_queued_run_one_is_told_that_it_did(
    database: Database, run_id: str
) -> None:
    ended: list[int] = []

    def cancel(number: int) -> Status:
        return lease.request_cancel(database, run_id, on_cancelled=lambda: ended.append(number))

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(cancel, range(8))) == {Status.CANCELLED}
    assert len(ended) == 1


def test_who_cancels_a_running_run_has_not_ended_it(database: Database, claim: Claim) -> None:
    ended: list[int] = []
    lease.request_cancel(database, claim.job_id, on_cancelled=lambda: ended.append(1))
    assert ended == []


def test_a_running_run_is_cancelled_by_its_worker(database: Database, claim: Claim) -> None:
    assert lease.request_cancel(database, claim.job_id) is Status.RUNNING
    assert lease.request_cancel(database, claim.job_id) is Status.RUNNING
    lease.finish(database, claim, "cancelled", message="cancelled")
    assert lease.request_cancel(database, claim.job_id) is Status.CANCELLED


def test_an_attempt_may_ask_for_its_own_cancellation(database: Database, claim: Claim) -> None:
    lease.cancel(database, claim)
    assert lease.cancel_requested(database, claim)


def test_an_attempt_that_was_replaced_cancels_nothing_after_it(
    database: Database, stale: Claim
) -> None:
    with pytest.raises(LeaseLost):
        lease.cancel(database, stale)
    (now,) = lease.owned(database, "worker")
    assert (now.attempt, now.cancel_requested) == (2, False)


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_what_has_ended_cannot_be_cancelled(database: Database, claim: Claim, status: str) -> None:
    lease.finish(database, claim, status)
    with pytest.raises(AlreadyFinished, match=status):
        lease.request_cancel(database, claim.job_id)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (None, NotFound),
        (JobKind.TRAIN, RunNotFound),
        (JobKind.TOKENIZER, TokenizerNotFound),
        (JobKind.GENERATE, DataNotFound),
    ],
)
def test_what_is_not_there_cannot_be_cancelled(
    database: Database, kind: JobKind | None, error: type[NotFound]
) -> None:
    with pytest.raises(error, match="run-unknown"):
        lease.request_cancel(database, "run-unknown", kind=kind)


def test_a_job_of_another_kind_cannot_be_cancelled_as_a_run(
    database: Database, run_id: str
) -> None:
    with pytest.raises(DataNotFound):
        lease.request_cancel(database, run_id, kind=JobKind.GENERATE)
    assert lease.request_cancel(database, run_id, kind=JobKind.TRAIN) is Status.CANCELLED


def test_leases_are_measured_by_the_clock_of_the_database(
    database: Database, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 4e9)  # this process believes in another century
    lease.beat(database, claim, lease_seconds=60)
    assert 59 < _lease_left(database, claim.job_id) <= 60
    assert lease.reap(database, max_crashes=3) == []


def test_no_job_is_running_without_an_owner(database: Database, run_id: str) -> None:
    with (
        pytest.raises(Exception, match="ck_jobs_running_is_leased"),
        database.write() as connection,
    ):
        connection.execute(update(JobRow).values(status=Status.RUNNING))
