"""Requests to a finished run, such as to generate text: jobs whose result is read once or twice.

The topic says what of its run a request is about: the split of an evaluation, a chat's session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Select, and_, case, delete, null, or_, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased

from trainer_app.errors import Conflict, DataNotFound
from trainer_app.store import ids
from trainer_app.store.database import NOW, Database
from trainer_app.store.idempotency import IdempotencyKey, claim_key
from trainer_app.store.jobs import enqueue
from trainer_app.store.tables import IdempotencyRow, JobKind, JobRow, Status
from trainer_app.store.upkeep import CHUNK

_PREFIXES: Final = {
    JobKind.GENERATE: ids.GENERATE,
    JobKind.SCORE: ids.SCORE,
    JobKind.EVALUATE: ids.EVALUATE,
    JobKind.CHAT: ids.CHAT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request and what came of it."""

    request_id: str
    run_id: str
    topic: str | None
    status: Status
    spec: str  # JSON
    result: str | None  # JSON
    error_code: str | None
    message: str
    queue: str
    user_id: int
    created_at: float  # unix seconds
    completed_at: float | None


def create(
    db: Database,
    kind: JobKind,
    run_id: str,
    spec: str,
    *,
    queue: str,
    user_id: int,
    topic: str | None = None,
    corpus_file_id: str | None = None,
    http_request_id: str | None = None,
    idempotency: IdempotencyKey | None = None,
) -> Request:
    """Queue a request to a run; with a key that was used before, the request of then.

    ``corpus_file_id``: what it reads, which cannot be deleted before it ends. It may be gone
    already: its token ids, or the data bank, may be all that is needed.

    Raises FieldError when the key came with another body, Conflict while an earlier turn of the
    same chat is not answered.
    """
    request_id = ids.new_id(_PREFIXES[kind])
    try:
        with db.write() as connection:
            earlier = claim_key(connection, idempotency, request_id)
            if earlier is None:
                enqueue(
                    connection,
                    job_id=request_id,
                    kind=kind,
                    spec=spec,
                    queue=queue,
                    user_id=user_id,
                    run_id=run_id,
                    topic=topic,
                    corpus_file_id=corpus_file_id,
                    request_id=http_request_id,
                    remote_corpora=True,
                )
            # Before the commit: behind it, nothing but its own answer is left to be lost.
            return _get(connection, kind, run_id, earlier or request_id)
    except IntegrityError as error:  # of the index of live turns: no other can be broken here
        raise Conflict(f"{topic}: its last message is not answered yet") from error


def get(db: Database, kind: JobKind, run_id: str, request_id: str) -> Request:
    """One request to this run. Raises DataNotFound, also for a request to another run."""
    with db.read() as connection:
        return _get(connection, kind, run_id, request_id)


def _get(connection: Connection, kind: JobKind, run_id: str, request_id: str) -> Request:
    statement = _requests(kind, run_id).where(JobRow.id == request_id)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise DataNotFound(f"{request_id}: {run_id} has no such request")
    return _request(row)


def latest(db: Database, kind: JobKind, run_id: str, topic: str) -> Request | None:
    """The request about this topic that came last."""
    statement = _requests(kind, run_id).where(JobRow.topic == topic)
    newest = statement.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(1)
    with db.read() as connection:
        row = connection.execute(newest).mappings().one_or_none()
    return None if row is None else _request(row)


def forget(db: Database, kind: JobKind, run_id: str, topic: str) -> dict[str, int]:
    """Delete what was asked about this topic, and what came of it.

    Returns those that run, with their attempts: they are to be cancelled, and forget at once what
    they were asked. Of those with an Idempotency-Key the ids stay until ``purge``: a repeat that
    comes late gets the first answer, and asks nothing anew.
    """
    about = (JobRow.kind == kind, JobRow.run_id == run_id, JobRow.topic == topic)
    queued, running = JobRow.status == Status.QUEUED, JobRow.status == Status.RUNNING
    asked = aliased(JobRow)  # of its own: one look through the keys, not one for each message
    ids_asked = select(asked.id).where(
        asked.kind == kind, asked.run_id == run_id, asked.topic == topic
    )
    with_key = select(IdempotencyRow.created_id).where(IdempotencyRow.created_id.in_(ids_asked))
    with db.write() as connection:
        connection.execute(delete(JobRow).where(*about, ~running, JobRow.id.not_in(with_key)))
        connection.execute(
            update(JobRow)
            .where(*about, ~running)
            .values(
                status=case((queued, Status.CANCELLED), else_=JobRow.status),
                completed_at=case((queued, NOW), else_=JobRow.completed_at),
                spec="{}",
                result=null(),
                message="",
            )
        )
        stopped = connection.execute(
            update(JobRow)
            .where(*about, running)
            .values(cancel_requested=True, spec="{}")
            .returning(JobRow.id, JobRow.attempt)
        ).all()
    return {row.id: row.attempt for row in stopped}


def purge(db: Database, *, completed_seconds: float, failed_seconds: float) -> int:
    """Forget requests that ended longer ago, and their keys; returns how many, 500 at most."""
    age = NOW - JobRow.completed_at
    completed = JobRow.status == Status.COMPLETED
    old = select(JobRow.id).where(
        JobRow.kind.in_(_PREFIXES),
        or_(
            and_(completed, age > completed_seconds),
            and_(JobRow.status.in_([Status.FAILED, Status.CANCELLED]), age > failed_seconds),
        ),
    )
    with db.read() as connection:
        # so many at a time that others can write in between
        gone = connection.scalars(old.limit(CHUNK)).all()
    if gone:  # what has ended never changes again
        with db.write() as connection:
            connection.execute(delete(IdempotencyRow).where(IdempotencyRow.created_id.in_(gone)))
            connection.execute(delete(JobRow).where(JobRow.id.in_(gone)))
    return len(gone)


def _requests(kind: JobKind, run_id: str) -> Select[*tuple[object, ...]]:
    return select(
        JobRow.id.label("request_id"),
        JobRow.run_id,
        JobRow.topic,
        JobRow.status,
        JobRow.spec,
        JobRow.result,
        JobRow.error_code,
        JobRow.message,
        JobRow.queue,
        JobRow.user_id,
        JobRow.created_at,
        JobRow.completed_at,
    ).where(JobRow.kind == kind, JobRow.run_id == run_id)


def _request(row: RowMapping) -> Request:
    return Request(**{**row, "status": Status(row["status"])})
