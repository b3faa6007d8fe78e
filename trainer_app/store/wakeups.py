"""Wake-up calls for the jobs that are due. They may be lost: who is not heard of is called again.

A call that has not been answered may also wait behind others for a worker to have time, for days.
Which it is, the oldest call tells that waits in the same list: workers take what was sent first, so
what was sent before that one was taken, and is lost if nothing came of it, and what was sent after
it waits as well. So each waiting job has one call there, and one that was taken by a worker which
then died is sent again at once, if its wait is over. Calls of jobs that are cancelled or running by
now tell as much as any other.

The order is that in which calls are counted as dispatched, a moment before they are sent: of two
that were sent at the same moment by two processes, one may be sent twice, which does no harm, or a
lost one not before the other was taken, which no worker has had time for until then. The same goes
for one that was lost on its way; and any number of dispatchers may ask at once, for the row counts.

Rows that another transaction holds are left for the next pass, as in store/upkeep.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, case, or_, select, update

from trainer_app.store.claims import CLAIMABLE, clean
from trainer_app.store.database import NOW, Database
from trainer_app.store.tables import JobKind, JobRow, Status
from trainer_app.store.upkeep import CHUNK, CLOCK_TOLERANCE

_FIRST_WAIT: Final = 60.0  # seconds for a wake-up call to be answered; doubles each time
_LONGEST_WAIT: Final = 900.0
_APART: Final = 1e-6  # seconds between calls that are due at once, so that they have an order


class Line(NamedTuple):
    """The jobs of one queue and priority: the broker keeps all calls of theirs in one list."""

    queue: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wakeup:
    """A queued job that a worker is to hear of."""

    job_id: str
    kind: JobKind
    queue: str
    priority: int  # 0 to 9, higher first
    dispatched_at: float  # by the database's clock, in unix seconds


def unanswered(db: Database) -> frozenset[Line]:
    """The lines of the jobs that are due unless their call waits in the broker's lists."""
    lines = select(JobRow.queue, JobRow.priority).where(*CLAIMABLE, _is_unanswered({})).distinct()
    with db.read() as connection:
        return frozenset(Line(row.queue, row.priority) for row in connection.execute(lines))


def due(
    db: Database,
    *,
    all_queued: bool = False,
    job_id: str | None = None,
    lines: Collection[Line] | None = None,
    waiting: Mapping[Line, float] | None = None,
) -> list[Wakeup]:
    """The queued jobs to publish now, the most urgent first; each counts as dispatched.

    A job is due when its back-off is over and its last wake-up call went unanswered for 60 s, then
    120 s, up to 15 min. ``all_queued``: however lately each was published, as when Redis has lost
    its messages. ``job_id``: that job alone; ``lines``: those of these alone. ``waiting``: by line,
    when the oldest call was dispatched that no worker has taken yet, in unix seconds; jobs of the
    line that were dispatched then or later are not due.
    """
    conditions = [*CLAIMABLE]
    if not all_queued:
        conditions.append(_is_unanswered(waiting or {}))
    if job_id is not None:
        conditions.append(JobRow.id == job_id)
    statement = (
        select(JobRow.id, JobRow.kind, JobRow.queue, JobRow.priority, NOW.label("now"))
        .where(*conditions)
        .order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
        .with_for_update(skip_locked=True)
    )
    with db.write() as connection:
        rows = [
            row
            for row in connection.execute(statement)
            if lines is None or Line(row.queue, row.priority) in lines
        ]
        wakeups = [
            Wakeup(
                job_id=row.id,
                kind=JobKind(row.kind),
                queue=row.queue,
                priority=row.priority,
                dispatched_at=rows[0].now + number * _APART,
            )
            for number, row in enumerate(rows)
        ]
        if wakeups:
            connection.execute(
                _DISPATCHED,
                [{"named": wakeup.job_id, "at": wakeup.dispatched_at} for wakeup in wakeups],
            )
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


def put_off(db: Database, job_id: str, *, message: str, delay_seconds: float) -> bool:
    """Let a queued job that is due wait, and say why; False: it said so already."""
    with db.write() as connection:
        said = connection.scalar(select(JobRow.message).where(JobRow.id == job_id))
        connection.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status == Status.QUEUED, JobRow.not_before <= NOW)
            .values(
                message=clean(message),
                not_before=NOW + delay_seconds,
                heartbeat_at=NOW,  # by the clock that the delay was given by
                dispatched_at=None,
                dispatches=0,
            )
        )
    return said != clean(message)


def _is_unanswered(waiting: Mapping[Line, float]) -> ColumnElement[bool]:
    # dispatches counts the one that is waited for: 60 s after the first, 120 s after the second.
    doublings = range(math.ceil(math.log2(_LONGEST_WAIT / _FIRST_WAIT)))
    wait = case(
        *((JobRow.dispatches <= n + 1, _FIRST_WAIT * 2**n) for n in doublings), else_=_LONGEST_WAIT
    )
    is_over = JobRow.dispatched_at <= NOW - wait
    if waiting:
        oldest = case(
            *(
                (and_(JobRow.queue == line.queue, JobRow.priority == line.priority), dispatched_at)
                for line, dispatched_at in waiting.items()
            )
        )
        is_over &= or_(oldest.is_(None), JobRow.dispatched_at < oldest)
    return or_(
        JobRow.dispatched_at.is_(None),
        is_over,
        JobRow.dispatched_at > NOW + CLOCK_TOLERANCE,  # the clock has been set back
    )


_DISPATCHED: Final = (
    update(JobRow)
    .where(JobRow.id == bindparam("named"), JobRow.status == Status.QUEUED)
    .values(dispatched_at=bindparam("at"), dispatches=JobRow.dispatches + 1)
)
