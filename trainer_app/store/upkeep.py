"""What any process may do for all jobs, every few seconds: end lost leases.

Rows that another transaction holds are left for the next pass, so that passes never wait for
each other, nor for a worker that froze in the middle of a write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select, update

from trainer_app.errors import ArtifactUploadFailed, WorkerLost
from trainer_app.store.claims import KNOWN_KIND, clean
from trainer_app.store.database import NOW, Database
from trainer_app.store.endings import Published, has_published, record_artifact
from trainer_app.store.tables import JobKind, JobRow, RunRow, Status

_CRASH_BACK_OFF: Final = (0.0, 5.0, 30.0, 120.0)  # seconds before the next attempt, by crashes
CLOCK_TOLERANCE: Final = 1.0  # seconds: two readings of one clock differ by less
CHUNK: Final = 500  # ids a statement
# Of a lease that was ended, as that of a process known to be dead; one that ran out keeps its time.
EXPIRED: Final = 0.0


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
    result: str | None = None  # JSON, of a run that had published its model, and so has completed


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


def queued(db: Database, job_ids: Collection[str]) -> set[str]:
    """Those of a few jobs that wait for a worker."""
    statement = select(JobRow.id).where(JobRow.id.in_(job_ids), JobRow.status == Status.QUEUED)
    with db.read() as connection:
        return set(connection.scalars(statement))


def reap(
    db: Database,
    *,
    max_crashes: int,
    as_of: float | None = None,
    fence: Callable[[str, int], object] = lambda _job_id, _attempt: None,
    left_in_place: Callable[[str], Published | None] = lambda _run_id: None,
    not_sent: str | None = None,
) -> list[Reaped]:
    """End the attempts whose lease is over; charge each a crash.

    ``as_of``: a reading of the database's clock that leases had to outlast, in unix seconds; None:
    now. With EXPIRED, those alone that were ended.

    ``fence`` is told of each, by job and attempt, before its row says so, and while nobody can
    renew its lease: from then on the attempt is to be able to publish nothing.

    A job whose cancellation was asked for is cancelled; one that has lost ``max_crashes`` workers
    fails with WORKER_LOST; any other is queued again, later each time. A run that had published its
    model has completed, whatever was asked of it since, and is charged nothing: that was written
    down (``endings.record_published``), or ``left_in_place`` finds it, for the attempt may have
    died before. ``not_sent``: what is said of its upload, which is then waited for; None: there is
    no data bank.

    The step that the run had come to is kept: a checkpoint beyond it forgives the crash, see
    ``lease.progress``. So a run of weeks outlives any number of machines, and one that takes its
    worker down each time without ever getting further still fails.
    """
    limit = NOW if as_of is None else as_of
    over = (JobRow.status == Status.RUNNING, JobRow.lease_until <= limit, KNOWN_KIND)
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
                JobRow.result,
                RunRow.step,
                RunRow.checkpoint_step,
            )
            .outerjoin(RunRow, RunRow.id == JobRow.id)
            .where(*over)
            .order_by(JobRow.lease_until)
            .limit(CHUNK)
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
            result = None
            if row.kind == JobKind.TRAIN:  # what is not in place by now never will be
                result = _published(connection, row.id, row.attempt, row.result, left_in_place)
            published = result is not None
            if published:
                fate = _completed(row.attempt, not_sent)
            connection.execute(
                update(JobRow)
                .where(JobRow.id == row.id, JobRow.attempt == row.attempt, *over)
                .values(
                    owner=None,
                    lease_until=None,
                    crashes=row.crashes if published else row.crashes + 1,
                    setback_step=max(row.setback_step or 0, step or 0),
                    status=fate.status,
                    result=result or row.result,
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
                    message=fate.told or fate.message,
                    result=result,
                )
            )
    return reaped


def _published(
    connection: Connection,
    run_id: str,
    attempt: int,
    recorded: str | None,
    left_in_place: Callable[[str], Published | None],
) -> str | None:
    """The result of a run that has published its model, of which its row tells the rest then."""
    ended: dict[str, object] = {"progress": 100, "eta_sec": None}
    if has_published(recorded, attempt):
        connection.execute(update(RunRow).where(RunRow.id == run_id).values(ended))
        return recorded
    model = left_in_place(run_id)
    if model is None:
        return None
    record_artifact(connection, run_id, model, **ended)
    return model.result


def run_out(db: Database, *, as_of: float) -> list[str]:
    """The jobs whose lease has run out by this reading of the database's clock, none renewing it.

    Without those whose lease was ended. The first 500 of them.
    """
    statement = (
        select(JobRow.id)
        .where(
            JobRow.status == Status.RUNNING,
            JobRow.lease_until > EXPIRED,
            JobRow.lease_until <= as_of,
        )
        .order_by(JobRow.lease_until.desc())
        .limit(CHUNK)
    )
    with db.read() as connection:
        return list(connection.scalars(statement))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fate:
    status: Status
    message: str
    cause: str | None = None  # for the next attempt to tell
    error_code: str | None = None
    delay: float = 0.0  # seconds
    told: str | None = None  # in the log; None: the message


def _completed(attempt: int, not_sent: str | None) -> _Fate:
    """What becomes of a run whose model was published."""
    return _Fate(
        status=Status.COMPLETED,
        message=not_sent or "",
        error_code=None if not_sent is None else ArtifactUploadFailed.code,
        told=f"attempt {attempt}: worker lost after it had published the model; completed",
    )


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
    ahead = JobRow.heartbeat_at > NOW + CLOCK_TOLERANCE
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
