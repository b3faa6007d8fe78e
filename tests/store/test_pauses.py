"""Runs that are held back, and runs that go on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import pytest
from sqlalchemy import update

from trainer_app.errors import (
    AlreadyFinished,
    Conflict,
    CorpusNotFound,
    FieldError,
    LeaseLost,
    RunNotFound,
    Unavailable,
)
from trainer_app.store import corpora, lease, pauses, runs
from trainer_app.store.database import Database
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.lease import Claim, Progress, Status
from trainer_app.store.tables import JobRow


class AnotherRun(Protocol):
    def __call__(self, **fields: object) -> str: ...


Move = Callable[[Database, str], Status]
KEY = IdempotencyKey(endpoint="POST /runs/run-1/move", key="key", body_sha256="a" * 64)


def test_a_paused_run_in_the_queue_is_neither_taken_nor_published_nor_counted(
    database: Database, run_id: str
) -> None:
    assert pauses.pause(database, run_id) is Status.QUEUED
    assert pauses.pause(database, run_id) is Status.QUEUED

    assert lease.claim(database, run_id, "worker:1", lease_seconds=60) is None
    assert lease.due(database, all_queued=True) == []
    run = runs.get(database, run_id)
    assert (run.status, run.paused, run.queue_position) == (Status.QUEUED, True, None)
    assert run.message == "paused before it started"


def test_a_running_run_is_asked_to_pause_and_its_claim_hands_it_back(
    database: Database, claim: Claim
) -> None:
    assert not pauses.pause_requested(database, claim)
    assert pauses.pause(database, claim.job_id) is Status.RUNNING
    assert pauses.pause_requested(database, claim)

    lease.hand_back(database, claim, message="paused at step 3")

    run = runs.get(database, claim.job_id)
    assert (run.status, run.paused, run.message) == (Status.QUEUED, True, "paused at step 3")
    with pytest.raises(LeaseLost):
        pauses.pause_requested(database, claim)


def test_a_run_that_is_cancelled_while_it_waits_to_go_on_is_not_said_never_to_have_started(
    database: Database, claim: Claim
) -> None:
    pauses.pause(database, claim.job_id)
    lease.hand_back(database, claim, message="paused at step 3")
    assert lease.request_cancel(database, claim.job_id) is Status.CANCELLED
    assert runs.get(database, claim.job_id).message == "cancelled"


def test_a_resumed_run_goes_on_and_knows_why_it_had_stopped(
    database: Database, claim: Claim
) -> None:
    pauses.pause(database, claim.job_id)
    lease.hand_back(database, claim, message="paused at step 3")

    assert pauses.resume(database, claim.job_id) is Status.QUEUED
    again = lease.claim(database, claim.job_id, "worker:2", lease_seconds=60)

    assert again is not None
    assert (again.attempt, again.cause) == (2, "paused")


def test_a_pause_is_taken_back_while_the_run_still_runs(database: Database, claim: Claim) -> None:
    pauses.pause(database, claim.job_id)

    assert pauses.resume(database, claim.job_id) is Status.RUNNING

    assert not pauses.pause_requested(database, claim)


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (Status.CANCELLED, None, "cancelled"),
        (Status.FAILED, "DISK_FULL", "failed with DISK_FULL"),
    ],
)
def test_a_run_that_has_ended_goes_on_with_its_checkpoint_and_all_its_tries(
    database: Database, claim: Claim, status: Status, code: str | None, cause: str
) -> None:
    lease.progress(database, claim, Progress(checkpoint="step-7", checkpoint_step=7))
    lease.request_cancel(database, claim.job_id)
    lease.finish(database, claim, status, error_code=code, message="over")

    assert pauses.resume(database, claim.job_id) is Status.QUEUED
    run = runs.get(database, claim.job_id)
    again = lease.claim(database, claim.job_id, "worker:2", lease_seconds=60)

    assert (run.message, run.error_code, run.completed_at) == ("resumed", None, None)
    assert (run.cancel_requested, run.queue_position) == (False, 0)
    assert again is not None
    assert (run.checkpoint, run.crashes) == ("step-7", 0)
    assert (again.attempt, again.cause) == (2, cause)


def test_what_was_not_stopped_is_not_resumed(database: Database, run_id: str) -> None:
    with pytest.raises(Conflict, match="is queued: there is nothing to resume"):
        pauses.resume(database, run_id)
    claim = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    with pytest.raises(Conflict, match="is running"):
        pauses.resume(database, run_id)


def test_a_completed_run_is_neither_paused_nor_resumed(database: Database, claim: Claim) -> None:
    lease.finish(database, claim, Status.COMPLETED)
    for move in (pauses.pause, pauses.resume):
        with pytest.raises(AlreadyFinished, match="has already completed"):
            move(database, claim.job_id)


@pytest.mark.parametrize(
    "end",
    [
        lambda db, claim: lease.finish(db, claim, Status.COMPLETED),
        lambda db, claim: (
            lease.request_cancel(db, claim.job_id) and lease.hand_back(db, claim, message="drained")
        ),
        lambda db, claim: (
            lease.hand_back(db, claim, message="paused").status
            and lease.request_cancel(db, claim.job_id)
        ),
        lambda db, claim: (
            lease.expire(db, claim.job_id, owner_prefix=claim.owner)
            and lease.reap(db, max_crashes=1)
        ),
    ],
    ids=["completed", "cancelled", "cancelled in the queue", "lost"],
)
def test_a_pause_that_comes_as_the_run_ends_is_forgotten(
    database: Database, claim: Claim, end: Callable[[Database, Claim], object]
) -> None:
    pauses.pause(database, claim.job_id)
    end(database, claim)

    run = runs.get(database, claim.job_id)
    assert run.completed_at is not None
    assert not run.paused


def test_a_completed_run_that_was_left_paused_is_not_resumed(
    database: Database, claim: Claim
) -> None:
    lease.finish(database, claim, Status.COMPLETED)
    with database.write() as connection:  # as the version before may leave it
        connection.execute(update(JobRow).values(paused=True))

    with pytest.raises(AlreadyFinished, match="has already completed"):
        pauses.resume(database, claim.job_id)


def test_a_lost_run_that_is_queued_again_stays_paused(database: Database, claim: Claim) -> None:
    pauses.pause(database, claim.job_id)
    lease.expire(database, claim.job_id, owner_prefix=claim.owner)
    lease.reap(database, max_crashes=3)
    assert runs.get(database, claim.job_id).paused


def test_a_cancelled_run_is_not_paused(database: Database, run_id: str) -> None:
    lease.request_cancel(database, run_id)
    with pytest.raises(AlreadyFinished, match="been cancelled"):
        pauses.pause(database, run_id)


def test_a_paused_run_in_the_queue_is_cancelled_at_once(database: Database, run_id: str) -> None:
    pauses.pause(database, run_id)
    assert lease.request_cancel(database, run_id) is Status.CANCELLED


@pytest.mark.parametrize("move", [pauses.pause, pauses.resume])
def test_there_must_be_such_a_run(database: Database, move: Move) -> None:
    with pytest.raises(RunNotFound):
        move(database, "run-none")


def test_a_repeated_pause_does_not_undo_the_resume_after_it(
    database: Database, run_id: str
) -> None:
    for _ in range(2):
        assert pauses.pause(database, run_id, idempotency=KEY) is Status.QUEUED
        if runs.get(database, run_id).paused:
            pauses.resume(database, run_id)
    assert not runs.get(database, run_id).paused


def test_a_repeated_resume_gets_the_answer_of_then_and_moves_nothing(
    database: Database, claim: Claim
) -> None:
    pauses.pause(database, claim.job_id)
    assert pauses.resume(database, claim.job_id, idempotency=KEY) is Status.RUNNING
    pauses.pause(database, claim.job_id)
    lease.hand_back(database, claim, message="paused at step 3")

    assert pauses.resume(database, claim.job_id, idempotency=KEY) is Status.RUNNING

    assert runs.get(database, claim.job_id).paused


def test_a_repeated_cancellation_does_not_cancel_what_was_resumed_since(
    database: Database, run_id: str
) -> None:
    assert lease.request_cancel(database, run_id, idempotency=KEY) is Status.CANCELLED
    pauses.resume(database, run_id)
    assert lease.request_cancel(database, run_id, idempotency=KEY) is Status.CANCELLED
    assert runs.get(database, run_id).status is Status.QUEUED


def test_a_move_that_failed_leaves_its_key_unused(database: Database, run_id: str) -> None:
    with pytest.raises(Conflict):
        pauses.resume(database, run_id, idempotency=KEY)
    pauses.pause(database, run_id)
    assert pauses.resume(database, run_id, idempotency=KEY) is Status.QUEUED
    assert not runs.get(database, run_id).paused


def test_a_key_that_came_with_another_body_moves_nothing(database: Database, run_id: str) -> None:
    pauses.pause(database, run_id, idempotency=KEY)
    with pytest.raises(FieldError, match="another body"):
        pauses.resume(database, run_id, idempotency=replace(KEY, body_sha256="b" * 64))
    assert runs.get(database, run_id).paused


def test_of_many_at_once_with_one_key_all_get_the_answer_of_the_first(
    database: Database, run_id: str
) -> None:
    lease.request_cancel(database, run_id)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: pauses.resume(database, run_id, idempotency=KEY), range(8))
        )
    assert answers == [Status.QUEUED] * 8


@pytest.mark.parametrize(
    ("cause", "message"),
    [("no space left", "paused; before that: no space left"), (None, "paused")],
)
def test_a_run_that_is_paused_while_it_waits_for_its_next_attempt_says_so(
    database: Database, claim: Claim, cause: str | None, message: str
) -> None:
    lease.retry_later(
        database, claim, delay_seconds=300, message="attempt 1 failed; again in 300 s", cause=cause
    )
    if cause is None:  # as the version before left it
        with database.write() as connection:
            connection.execute(update(JobRow).values(cause=None))

    for _ in range(2):
        pauses.pause(database, claim.job_id)
        assert runs.get(database, claim.job_id).message == message


def test_a_resume_that_comes_to_nothing_leaves_the_run_as_it_was(
    database: Database, run_id: str
) -> None:
    asked: list[str] = []

    def refuse() -> None:
        asked.append(run_id)
        raise Unavailable("Redis does not answer")

    with pytest.raises(Conflict):
        pauses.resume(database, run_id, before=refuse)
    assert asked == []
    pauses.pause(database, run_id)
    with pytest.raises(Unavailable):
        pauses.resume(database, run_id, before=refuse)

    assert asked == [run_id]
    assert runs.get(database, run_id).paused


def test_a_run_whose_corpus_was_deleted_after_its_end_is_not_resumed(
    database: Database, another_run: AnotherRun
) -> None:
    file_id = corpora.add(database, "a" * 64, 10, 2).file_id
    run_id = another_run(corpus_file_id=file_id, corpus_path=None)
    lease.request_cancel(database, run_id)
    corpora.delete(database, file_id)

    with pytest.raises(CorpusNotFound, match=file_id):
        pauses.resume(database, run_id)

    assert runs.get(database, run_id).status is Status.CANCELLED
    assert pauses.resume(database, run_id, remote_corpora=True) is Status.QUEUED
