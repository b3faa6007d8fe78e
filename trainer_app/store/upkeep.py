"""What any process may do for all jobs, every few seconds: end lost leases, wake workers.

Rows that another transaction holds are left for the next pass, so that passes never wait for
each other, nor for a worker that froze in the middle of a write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, Update, case, func, or_, select, update

from trainer_app.errors import WorkerLost
from trainer_app.store.claims import clean
from trainer_app.store.database import NOW, Database
from trainer_app.store.tables import JobKind, JobRow, RunRow, Status

_CRASH_BACK_OFF: Final = (0.0, 5.0, 30.0, 120.0)  # seconds before the next attempt, by crashes
_FIRST_WAIT: Final = 60.0  # seconds for a wake-up call to be answered; doubles each time
_LONGEST_WAIT: Final = 900.0
_CLOCK_TOLERANCE: Final = 1.0  # seconds: two readings of one clock differ by less
_CHUNK: Final = 500  # ids a statement
# While versions are changed, the kinds of job that only a later one has are left to its processes.
_KNOWN_KIND: Final = JobRow.kind.in_(tuple(JobKind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """A job whose worker was lost, and what became of it."""

    job_id: str
    kind: JobKind
    run_id: str | None
    user_id: int
    request_id: str | None  # X-Request-ID of the POST
    queue: str
    status: Status
    attempt: int  # the one that was lost
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wakeup:
    """A queued job that a worker is to hear of."""

    job_id: str
    kind: JobKind
    queue: str
    priority: int  # 0 to 9, higher first


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A running job and the process that has it."""

    job_id: str
    attempt: int
    owner: str
    pid: int
    cancel_requested: bool
    is_over: bool  # its lease, which was neither renewed nor ended: nothing can be written


def explain(db: Database, reaped: Reaped, message: str) -> None:
    """Say more of why a job has failed that lost its workers, unless it goes on by now."""
    with db.write() as connection:
        connection.execute(
            update(JobRow)
            .where(
                JobRow.id == reaped.job_id,
                JobRow.attempt == reaped.attempt,
                JobRow.status == Status.FAILED,
            )
            .values(message=clean(message))
        )


def owned(db: Database, node: str) -> list[Owned]:
    """The running jobs of a worker: their owners are ``node:pid``."""
    prefix = f"{node}:"
    statement = select(
        JobRow.id,
        JobRow.attempt,
        JobRow.owner,
        JobRow.cancel_requested,
        (JobRow.lease_until <= NOW).label("is_over"),
    ).where(JobRow.status == Status.RUNNING, func.substr(JobRow.owner, 1, len(prefix)) == prefix)
    with db.read() as connection:
        return [
            Owned(
                job_id=row.id,
                attempt=row.attempt,
                owner=row.owner,
                pid=int(row.owner.removeprefix(prefix)),
                cancel_requested=row.cancel_requested,
                is_over=bool(row.is_over),
            )
            for row in connection.execute(statement)
        ]


def reap(
    db: Database,
    *,
    max_crashes: int,
    fence: Callable[[str, int], object] = lambda _job_id, _attempt: None,
) -> list[Reaped]:
    """End the attempts whose lease is over; charge each a crash.

    ``fence`` is told of each, by job and attempt, before its row says so, and while nobody can
    renew its lease: from then on the attempt is to be able to publish nothing.

    A job whose cancellation was asked for is cancelled; one that has lost ``max_crashes`` workers
    fails with WORKER_LOST; any other is queued again, later each time.

    The step that the run had come to is kept: a checkpoint beyond it forgives the crash, see
    ``lease.progress``. So a run of weeks outlives any number of machines, and one that takes its
    worker down each time without ever getting further still fails.
    """
    over = (JobRow.status == Status.RUNNING, JobRow.lease_until <= NOW, _KNOWN_KIND)
    with db.write() as connection:
        _follow_the_clock(connection)
        rows = connection.execute(
            select(
                JobRow.id,
                JobRow.kind,
                JobRow.run_id,
                JobRow.user_id,
                JobRow.request_id,
                JobRow.queue,
                JobRow.attempt,
                JobRow.crashes,
                JobRow.cancel_requested,
                JobRow.paused,
                JobRow.setback_step,
                RunRow.step,
                RunRow.checkpoint_step,
            )
            .outerjoin(RunRow, RunRow.id == JobRow.id)
            .where(*over)
            .order_by(JobRow.lease_until)
            .limit(_CHUNK)
            .with_for_update(of=JobRow, skip_locked=True)
        ).all()
        reaped = []
        for row in rows:
            # What was told last may be older than what was saved.
            step = None if row.step is None else max(row.step, row.checkpoint_step or 0)
            fate = _fate(
                attempt=row.attempt,
                crashes=row.crashes + 1,
                cancelled=row.cancel_requested,
                paused=row.paused,
                step=step,
                max_crashes=max_crashes,
            )
            fence(row.id, row.attempt)
            connection.execute(
                update(JobRow)
                .where(JobRow.id == row.id, JobRow.attempt == row.attempt, *over)
                .values(
                    owner=None,
                    lease_until=None,
                    crashes=row.crashes + 1,
                    setback_step=max(row.setback_step or 0, step or 0),
                    status=fate.status,
                    error_code=fate.error_code,
                    message=fate.message,
                    cause=fate.cause,
                    completed_at=None if fate.status is Status.QUEUED else NOW,
                    paused=JobRow.paused if fate.status is Status.QUEUED else False,
                    not_before=NOW + fate.delay if fate.delay else 0.0,
                    heartbeat_at=NOW,  # by the clock that the back-off was given by
                )
            )
            reaped.append(
                Reaped(
                    job_id=row.id,
                    kind=JobKind(row.kind),
                    run_id=row.run_id,
                    user_id=row.user_id,
                    request_id=row.request_id,
                    queue=row.queue,
                    status=fate.status,
                    attempt=row.attempt,
                    message=fate.message,
                )
            )
    return reaped


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
        _KNOWN_KIND,
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
        for start in range(0, len(wakeups), _CHUNK):
            ids = [wakeup.job_id for wakeup in wakeups[start : start + _CHUNK]]
            connection.execute(_dispatched().where(JobRow.id.in_(ids)))
    return wakeups


def take_back(db: Database, job_ids: Sequence[str]) -> None:
    """Make jobs due again that ``due`` has counted as dispatched, but that were not sent."""
    with db.write() as connection:
        for start in range(0, len(job_ids), _CHUNK):
            connection.execute(
                update(JobRow)
                .where(
                    JobRow.id.in_(job_ids[start : start + _CHUNK]),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fate:
    status: Status
    message: str
    cause: str | None = None  # for the next attempt to tell
    error_code: str | None = None
    delay: float = 0.0  # seconds


def _fate(
    *,
    attempt: int,
    crashes: int,
    cancelled: bool,
    paused: bool,
    step: int | None,
    max_crashes: int,
) -> _Fate:
    """What becomes of a job that has now lost ``crashes`` workers."""
    if cancelled:
        return _Fate(status=Status.CANCELLED, message="cancelled; its worker was lost")
    if crashes >= max_crashes:
        times = "1 time" if crashes == 1 else f"{crashes} times"
        last = "" if step is None else f"; last at step {step}"
        return _Fate(
            status=Status.FAILED,
            message=f"lost its worker {times}{last}",
            error_code=WorkerLost.code,
        )
    where = "" if step is None else f" at step {step}"
    return _Fate(
        status=Status.QUEUED,
        message=f"attempt {attempt}: worker lost{where}; {'paused' if paused else 'queued again'}",
        cause=f"worker lost{where}",
        delay=_CRASH_BACK_OFF[min(crashes, len(_CRASH_BACK_OFF)) - 1],
    )


def _follow_the_clock(connection: Connection) -> None:
    """Shift the leases and back-offs that were given by a clock that has since been set back.

    Without it, a worker lost just before would be missed for as long as the clock went back, and
    a job that is to be tried again would wait as long.
    """
    ahead = JobRow.heartbeat_at > NOW + _CLOCK_TOLERANCE
    shifted = {
        (JobRow.status == Status.RUNNING): JobRow.lease_until,
        (JobRow.status == Status.QUEUED) & (JobRow.not_before > NOW): JobRow.not_before,
    }
    for condition, until in shifted.items():
        found = select(JobRow.id).where(condition, ahead).with_for_update(skip_locked=True)
        for job_id in connection.scalars(found).all():
            connection.execute(
                update(JobRow)
                .where(JobRow.id == job_id)
                .values({until: NOW + until - JobRow.heartbeat_at, JobRow.heartbeat_at: NOW})
            )


def _is_unanswered() -> ColumnElement[bool]:
    # dispatches counts the one that is waited for: 60 s after the first, 120 s after the second.
    doublings = range(math.ceil(math.log2(_LONGEST_WAIT / _FIRST_WAIT)))
    wait = case(
        *((JobRow.dispatches <= n + 1, _FIRST_WAIT * 2**n) for n in doublings), else_=_LONGEST_WAIT
    )
    return or_(
        JobRow.dispatched_at.is_(None),
        JobRow.dispatched_at <= NOW - wait,
        JobRow.dispatched_at > NOW + _CLOCK_TOLERANCE,  # the clock has been set back
    )


def _dispatched() -> Update:
    return (
        update(JobRow)
        .where(JobRow.status == Status.QUEUED)
        .values(dispatched_at=NOW, dispatches=JobRow.dispatches + 1)
    )
