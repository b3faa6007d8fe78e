"""Wake-up calls for the jobs that are due. They may be lost: who is not heard of is called again.

Rows that another transaction holds are left for the next pass, as in store/upkeep.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Update, case, or_, select, update

from trainer_app.store.claims import clean
from trainer_app.store.database import NOW, Database
from trainer_app.store.tables import JobKind, JobRow, Status
from trainer_app.store.upkeep import CHUNK, CLOCK_TOLERANCE, KNOWN_KIND

_FIRST_WAIT: Final = 60.0  # seconds for a wake-up call to be answered; doubles each time
_LONGEST_WAIT: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wakeup:
    """A queued job that a worker is to hear of."""

    job_id: str
    kind: JobKind
    queue: str
    priority: int  # 0 to 9, higher first


def due(db: Database, *, all_queued: bool = False, job_id: str | None = None) -> list[Wakeup]:
    """The queued jobs to publish now, the most urgent first; each counts as dispatched.

    A job is due when its back-off is over and its last wake-up call went unanswered for 60 s, then
    120 s, up to 15 min. ``all_queued``: however lately each was published, as when Redis has lost
    its messages. ``job_id``: that job alone.
    """
    conditions = [
        JobRow.status == Status.QUEUED,
        ~JobRow.paused,
        JobRow.not_before <= NOW,
        KNOWN_KIND,
    ]
    if not all_queued:
        conditions.append(_is_unanswered())
    if job_id is not None:
        conditions.append(JobRow.id == job_id)
    statement = (
        select(JobRow.id, JobRow.kind, JobRow.queue, JobRow.priority)
        .where(*conditions)
        .order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
        .with_for_update(skip_locked=True)
    )
    with db.write() as connection:
        wakeups = [
            Wakeup(job_id=row.id, kind=JobKind(row.kind), queue=row.queue, priority=row.priority)
            for row in connection.execute(statement)
        ]
        for start in range(0, len(wakeups), CHUNK):
            ids = [wakeup.job_id for wakeup in wakeups[start : start + CHUNK]]
            connection.execute(_dispatched().where(JobRow.id.in_(ids)))
    return wakeups


def take_back(db: Database, job_ids: Sequence[str]) -> None:
    """Make jobs due again that ``due`` has counted as dispatched, but that were not sent."""
    with db.write() as connection:
        for start in range(0, len(job_ids), CHUNK):
            connection.execute(
                update(JobRow)
                .where(
                    JobRow.id.in_(job_ids[start : start + CHUNK]),
                    JobRow.status == Status.QUEUED,
                    JobRow.dispatches > 0,  # unless it was claimed and queued again since
                )
                .values(dispatched_at=None, dispatches=JobRow.dispatches - 1)
            )


def queued_spec(db: Database, job_id: str) -> tuple[str, str] | None:
    """The kind of a job that waits for a worker, and its spec; None where it does not wait.

    The kind may be one that only a later version has.
    """
    statement = select(JobRow.kind, JobRow.spec).where(
        JobRow.id == job_id, JobRow.status == Status.QUEUED, ~JobRow.paused
    )
    with db.read() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else (row.kind, row.spec)


def put_off(db: Database, job_id: str, *, message: str, delay_seconds: float) -> None:
    """Let a queued job wait before it is due again, and say why."""
    with db.write() as connection:
        connection.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status == Status.QUEUED)
            .values(
                message=clean(message),
                not_before=NOW + delay_seconds,
                heartbeat_at=NOW,  # by the clock that the delay was given by
                dispatched_at=None,
                dispatches=0,
            )
        )


def mark_dispatched(db: Database, job_id: str) -> None:
    """Count a wake-up call that was sent by other means than ``due``."""
    with db.write() as connection:
        connection.execute(_dispatched().where(JobRow.id == job_id))


def _is_unanswered() -> ColumnElement[bool]:
    # dispatches counts the one that is waited for: 60 s after the first, 120 s after the second.
    doublings = range(math.ceil(math.log2(_LONGEST_WAIT / _FIRST_WAIT)))
    wait = case(
        *((JobRow.dispatches <= n + 1, _FIRST_WAIT * 2**n) for n in doublings), else_=_LONGEST_WAIT
    )
    return or_(
        JobRow.dispatched_at.is_(None),
        JobRow.dispatched_at <= NOW - wait,
        JobRow.dispatched_at > NOW + CLOCK_TOLERANCE,  # the clock has been set back
    )


def _dispatched() -> Update:
    return (
        update(JobRow)
        .where(JobRow.status == Status.QUEUED)
        .values(dispatched_at=NOW, dispatches=JobRow.dispatches + 1)
    )
