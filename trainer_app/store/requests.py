"""Requests to a finished run, such as to generate text: jobs whose result is read once or twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import and_, delete, or_, select

from trainer_app.errors import DataNotFound
from trainer_app.store import ids
from trainer_app.store.database import NOW, Database
from trainer_app.store.idempotency import IdempotencyKey, claim_key
from trainer_app.store.jobs import enqueue
from trainer_app.store.tables import IdempotencyRow, JobKind, JobRow, Status

_PREFIXES: Final = {JobKind.GENERATE: ids.GENERATE}
_CHUNK: Final = 500  # rows at a time, so that others can write in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request and what came of it."""

    request_id: str
    run_id: str
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
    http_request_id: str | None = None,
    idempotency: IdempotencyKey | None = None,
) -> Request:
    """Queue a request to a run; with a key that was used before, the request of then.

    Raises FieldError when the key came with another body.
    """
    request_id = ids.new_id(_PREFIXES[kind])
    with db.write() as session:
        earlier = claim_key(session, idempotency, request_id)
        if earlier is None:
            enqueue(
                session,
                job_id=request_id,
                kind=kind,
                spec=spec,
                queue=queue,
                user_id=user_id,
                run_id=run_id,
                request_id=http_request_id,
            )
    return get(db, kind, run_id, earlier or request_id)


def get(db: Database, kind: JobKind, run_id: str, request_id: str) -> Request:
    """One request to this run. Raises DataNotFound, also for a request to another run."""
    statement = select(
        JobRow.id.label("request_id"),
        JobRow.run_id,
        JobRow.status,
        JobRow.spec,
        JobRow.result,
        JobRow.error_code,
        JobRow.message,
        JobRow.queue,
        JobRow.user_id,
        JobRow.created_at,
        JobRow.completed_at,
    ).where(JobRow.id == request_id, JobRow.kind == kind, JobRow.run_id == run_id)
    with db.read() as session:
        row = session.execute(statement).mappings().one_or_none()
    if row is None:
        raise DataNotFound(f"{request_id}: {run_id} has no such request")
    return Request(**{**row, "status": Status(row["status"])})


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
    with db.read() as session:
        gone = session.scalars(old.limit(_CHUNK)).all()
    if gone:  # what has ended never changes again
        with db.write() as session:
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_id.in_(gone)))
            session.execute(delete(JobRow).where(JobRow.id.in_(gone)))
    return len(gone)
