"""Runs that are held back, and runs that go on: each move is one conditional UPDATE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import ColumnElement, Connection, case, func, literal, null, select, update

from trainer_app.core.json_spec import ASKED_LOST
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import AlreadyFinished, Conflict, RowDamaged, RunNotFound
from trainer_app.store.claims import Claim, held, lost
from trainer_app.store.database import Database
from trainer_app.store.idempotency import IdempotencyKey, once
from trainer_app.store.jobs import keep_what_it_reads
from trainer_app.store.moves import move
from trainer_app.store.tables import FINAL, JobKind, JobRow, Status

_RESUMABLE: Final = (Status.CANCELLED, Status.FAILED)


def pause(db: Database, run_id: str, *, idempotency: IdempotencyKey | None = None) -> Status:
    """Hold a run back: no worker takes it until it is resumed, and one that has it is told.

    Returns where it stands now; asking twice gives the same. With a key that was used before,
    nothing happens, and it returns what it did then. Raises RunNotFound, AlreadyFinished once it
    has ended, and FieldError when the key came with another body.
    """
    with db.write() as connection:
        return Status(once(connection, idempotency, lambda: _pause(connection, run_id)))


def _pause(connection: Connection, run_id: str) -> Status:
    fresh = JobRow.attempt == 0
    # What it said last may tell when it goes on.
    waits = (JobRow.status == Status.QUEUED) & ~JobRow.paused
    paused = case((JobRow.cause.is_(None), "paused"), else_="paused; before that: " + JobRow.cause)
    statement = (
        update(JobRow)
        .where(*_named(run_id), JobRow.status.in_([Status.QUEUED, Status.RUNNING]))
        .values(
            paused=True,
            message=case(
                (fresh, "paused before it started"), (waits, paused), else_=JobRow.message
            ),
        )
        .returning(JobRow.status)
    )
    moved = move(connection, statement, _named(run_id))
    if moved is None:
        raise AlreadyFinished(f"{run_id} has already {_ended(_status(connection, run_id))}")
    return Status(moved.status)


def pause_requested(db: Database, claim: Claim) -> bool:
    """Whether the claimed run is to be paused. Raises LeaseLost."""
    with db.read() as connection:
        asked = connection.scalar(select(JobRow.paused).where(*held(claim)))
    if asked is None:
        raise lost(claim)
    return asked


def resume(
    db: Database,
    run_id: str,
    *,
    remote_corpora: bool = False,
    idempotency: IdempotencyKey | None = None,
    before: Callable[[], None] = lambda: None,
) -> Status:
    """Let a paused, cancelled or failed run go on from its last checkpoint, as often as at first.

    ``before`` is called once nothing speaks against it, before anybody else can move or take it:
    whatever it waits for, on SQLite the beats of all jobs wait with it.

    Returns where it stands now; with a key that was used before, as ``pause`` does. Raises
    RunNotFound, AlreadyFinished when it has completed, Conflict when it is queued or running and
    not paused, CorpusNotFound and TokenizerNotFound when what it reads was deleted since it ended
    (a corpus that is not here may be in the data bank if ``remote_corpora``), RowDamaged when what
    it was asked for can no longer be read, and FieldError when the key came with another body.
    """

    def act() -> str:
        status = _resume(connection, run_id)
        _keep_what_it_reads(connection, run_id, remote_corpora=remote_corpora)
        before()
        return status

    with db.write() as connection:
        return Status(once(connection, idempotency, act))


def unless_resumed(db: Database, run_id: str, act: Callable[[], None]) -> None:
    """Call ``act``, before anybody can resume the run, if it is still to be resumed.

    After a ``resume`` whose outcome is not known: this waits for one that is being committed. A run
    that has been resumed and held back once more meanwhile looks like one that was not. Raises
    Unavailable.
    """
    statement = select(JobRow.id).where(*_named(run_id), _is_resumable()).with_for_update()
    with db.write() as connection:
        if connection.scalar(statement) is not None:
            act()


def _keep_what_it_reads(connection: Connection, run_id: str, *, remote_corpora: bool) -> None:
    """Also of a run that has ended, which kept nothing from being deleted."""
    row = connection.execute(
        select(JobRow.corpus_file_id, JobRow.tokenizer_id, JobRow.spec).where(*_named(run_id))
    ).one()
    if TrainSpec.read(row.spec) is None:
        raise RowDamaged(f"{run_id}: {ASKED_LOST}")
    keep_what_it_reads(
        connection,
        corpus_file_id=row.corpus_file_id,
        tokenizer_id=row.tokenizer_id,
        remote_corpora=remote_corpora,
    )


def _resume(connection: Connection, run_id: str) -> Status:
    ended = JobRow.status.in_(_RESUMABLE)
    cause = case(
        (JobRow.status == Status.CANCELLED, "cancelled"),
        (JobRow.status == Status.FAILED, "failed with " + func.coalesce(JobRow.error_code, "?")),
        else_="paused",
    )
    statement = (
        update(JobRow)
        .where(*_named(run_id), _is_resumable())
        .values(
            status=case((ended, literal(Status.QUEUED)), else_=JobRow.status),
            paused=False,
            cancel_requested=case((ended, False), else_=JobRow.cancel_requested),
            crashes=0,
            retries=0,
            setback_step=None,
            not_before=0.0,
            dispatched_at=None,
            dispatches=0,
            completed_at=null(),
            error_code=None,
            cause=case((JobRow.status == Status.RUNNING, JobRow.cause), else_=cause),
            message=case((JobRow.status == Status.RUNNING, JobRow.message), else_="resumed"),
        )
        .returning(JobRow.status)
    )
    moved = move(connection, statement, _named(run_id))
    if moved is None:
        raise _refusal(connection, run_id)
    return Status(moved.status)


def _is_resumable() -> ColumnElement[bool]:
    held_back = JobRow.paused & JobRow.status.in_([Status.QUEUED, Status.RUNNING])
    return JobRow.status.in_(_RESUMABLE) | held_back


def _refusal(connection: Connection, run_id: str) -> Conflict:
    """Why a run cannot be resumed. Raises RunNotFound."""
    stands = _status(connection, run_id)
    if stands in FINAL:
        return AlreadyFinished(f"{run_id} has already {_ended(stands)}")
    return Conflict(f"{run_id} is {stands}: there is nothing to resume")


def _named(run_id: str) -> tuple[ColumnElement[bool], ...]:
    return (JobRow.id == run_id, JobRow.kind == JobKind.TRAIN)


def _status(connection: Connection, run_id: str) -> Status:
    status = connection.scalar(select(JobRow.status).where(*_named(run_id)))
    if status is None:
        raise RunNotFound(f"{run_id}: there is no such run")
    return Status(status)


def _ended(status: Status) -> str:
    return "been cancelled" if status is Status.CANCELLED else status
