"""The lease on a job: each move is one conditional UPDATE, and what it returns is the answer.

A claim's ``attempt`` is its fencing token: whoever holds an older one can write nothing.

    QUEUED -> RUNNING -> COMPLETED | FAILED | CANCELLED
    RUNNING -> QUEUED (drained, retried, reaped)        QUEUED -> CANCELLED
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from sqlalchemy import Connection, Row, case, func, null, select, true, update

from trainer_app.errors import (
    AlreadyFinished,
    DataNotFound,
    NotFound,
    RunNotFound,
    TokenizerNotFound,
)
from trainer_app.store import metrics
from trainer_app.store.claims import CLAIMABLE, Claim, clean, held, hold, lost
from trainer_app.store.database import NOW, Database
from trainer_app.store.endings import (
    Artifact,
    Ended,
    Published,
    finish,
    hand_back,
    record_published,
    retries,
    retry_later,
    stands,
)
from trainer_app.store.idempotency import IdempotencyKey, once
from trainer_app.store.metrics import MetricPoint
from trainer_app.store.moves import move
from trainer_app.store.tables import JobKind, JobRow, RunRow, Status
from trainer_app.store.upkeep import EXPIRED, Owned, Reaped, owned, queued, reap
from trainer_app.store.wakeups import Wakeup, due

# The whole life of a job is told here, whichever module holds the chapter.
__all__ = [
    "Artifact",
    "Claim",
    "Ended",
    "JobKind",
    "MetricPoint",
    "Owned",
    "Progress",
    "Published",
    "Reaped",
    "Status",
    "Wakeup",
    "beat",
    "cancel",
    "cancel_requested",
    "claim",
    "due",
    "expire",
    "finish",
    "hand_back",
    "lift",
    "owned",
    "progress",
    "queued",
    "reap",
    "record_published",
    "request_cancel",
    "retries",
    "retry_later",
    "stands",
]

_NOT_FOUND: Mapping[JobKind, type[NotFound]] = {
    JobKind.TRAIN: RunNotFound,
    JobKind.TOKENIZER: TokenizerNotFound,
}


# What a claim says, but for its job and owner.
_CLAIMED = (
    JobRow.kind,
    JobRow.attempt,
    JobRow.spec,
    JobRow.user_id,
    JobRow.queue,
    JobRow.run_id,
    JobRow.created_at,
    JobRow.request_id,
    JobRow.cause,
    JobRow.checkpoint,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has changed; None: as before. Values that are not finite are left out."""

    message: str | None = None
    resolved: str | None = None  # JSON: fields of the spec, as this attempt resolved them
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    loss_chain: str | None = None  # that the curve has come to: core/loss_chain.py
    loss_chain_step: int | None = None  # at which step
    progress: int | None = None  # percent
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    train_loss: float | None = None  # nats per predicted token
    val_loss: float | None = None
    tokens_per_sec: float | None = None
    eta_sec: float | None = None

    def merged(self, newer: Progress) -> Progress:
        """This and what has changed since."""
        known = {name: value for name, value in asdict(newer).items() if value is not None}
        return replace(self, **known)


def claim(db: Database, job_id: str, owner: str, *, lease_seconds: float) -> Claim | None:
    """Start an attempt. None: the message was a duplicate, stale, early, or of a cancelled job.

    Or of a kind that only a later version has.
    """
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, *CLAIMABLE)
        .values(
            status=Status.RUNNING,
            owner=owner,
            attempt=JobRow.attempt + 1,
            lease_until=NOW + lease_seconds,
            heartbeat_at=NOW,
            started_at=func.coalesce(JobRow.started_at, NOW),
            message="",
            result=null(),  # see ``record_published``: this attempt has published nothing yet
            not_before=0.0,
            dispatched_at=None,  # should it be queued again, it is due at once
            dispatches=0,
        )
        .returning(*_CLAIMED)
    )
    with db.write() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else _claim(job_id, owner, row)


def settle(db: Database, claim: Claim, spec: str) -> None:
    """Complete what the job was asked for with what only a worker could find out.

    Later attempts are told the same. Raises LeaseLost.
    """
    with db.write() as connection:
        hold(connection, claim, {"spec": spec})


def lift(db: Database, claim: Claim, *, above: int) -> Claim:
    """Count this attempt for the one after ``above``, of which the row knew nothing.

    As after a database was restored from a backup: a fencing token must never go backwards. Raises
    LeaseLost.
    """
    with db.write() as connection:
        hold(connection, claim, {"attempt": above + 1})
    return replace(claim, attempt=above + 1, counted=claim.attempt)


def claim_of(db: Database, job_id: str, owner: str) -> Claim | None:
    """The claim of this owner on the job, if it has one.

    For a process that claimed it and got no answer: no other has its name.
    """
    statement = select(*_CLAIMED).where(
        JobRow.id == job_id, JobRow.owner == owner, JobRow.status == Status.RUNNING
    )
    with db.read() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else _claim(job_id, owner, row)


def beat(db: Database, claim: Claim, *, lease_seconds: float) -> bool:
    """Renew the lease; True when cancellation is asked for. Raises LeaseLost."""
    with db.write() as connection:
        return hold(
            connection, claim, {"lease_until": NOW + lease_seconds, "heartbeat_at": NOW}
        ).cancel_requested


def cancel_requested(db: Database, claim: Claim) -> bool:
    """Whether cancellation is asked for, without renewing the lease. Raises LeaseLost."""
    with db.read() as connection:
        asked = connection.scalar(select(JobRow.cancel_requested).where(*held(claim)))
    if asked is None:
        raise lost(claim)
    return asked


def cancel(db: Database, claim: Claim, *, confirm: Callable[[], None] = lambda: None) -> None:
    """Ask for the cancellation of this attempt, never of one after it. Raises LeaseLost.

    ``confirm`` is as ``request_cancel`` has it.
    """
    with db.write() as connection:
        hold(connection, claim, {"cancel_requested": True})
        confirm()


def progress(
    db: Database, claim: Claim, change: Progress, points: Sequence[MetricPoint] = ()
) -> None:
    """Record news and points of the curve in one transaction, all or nothing. Raises LeaseLost.

    A checkpoint beyond the step of the last crash or retry forgives all that were: only those
    count that kept the run from getting further.
    """
    known = {name: value for name, value in asdict(change).items() if _is_news(value)}
    message = known.pop("message", None)
    checkpoint = known.pop("checkpoint", None)
    # Twice a second beside the training: a statement of more parts takes longer to be built.
    held: dict[str, object] = {
        "message": JobRow.message if message is None else clean(str(message))
    }
    if checkpoint is not None:
        held["checkpoint"] = checkpoint
    if change.checkpoint_step:
        # A row without a step may have been charged by the version before, which kept none.
        further = change.checkpoint_step > func.coalesce(JobRow.setback_step, 0)
        held["crashes"] = case((further, 0), else_=JobRow.crashes)
        held["retries"] = case((further, 0), else_=JobRow.retries)
    with db.write() as connection:
        hold(connection, claim, held)
        if known:
            connection.execute(update(RunRow).where(RunRow.id == claim.job_id).values(known))
        metrics.record(connection, claim.job_id, claim.attempt, points)


def expire(db: Database, job_id: str, *, owner_prefix: str, attempt: int | None = None) -> bool:
    """End the lease of a worker whose process is known to be dead, so that a resume takes seconds.

    False when no owner with this prefix runs the job, or not as this attempt.
    """
    statement = (
        update(JobRow)
        .where(
            JobRow.id == job_id,
            JobRow.status == Status.RUNNING,
            func.substr(JobRow.owner, 1, len(owner_prefix)) == owner_prefix,
            true() if attempt is None else JobRow.attempt == attempt,
        )
        .values(lease_until=EXPIRED)  # over, whatever the clock says and will say
        .returning(JobRow.id)
    )
    with db.write() as connection:
        return connection.scalar(statement) is not None


def request_cancel(
    db: Database,
    job_id: str,
    *,
    kind: JobKind | None = None,
    idempotency: IdempotencyKey | None = None,
    confirm: Callable[[], None] = lambda: None,
    on_cancelled: Callable[[], None] | None = None,
    on_asked: Callable[[int], None] | None = None,
) -> Status:
    """Ask for a job's cancellation: at once when queued, else its worker is told.

    ``confirm`` is called once nobody else can move the job before this is done, and raises where
    it is not to be.

    ``on_cancelled`` is called, after the commit, by the one call that ends a queued job;
    ``on_asked`` by each that finds one to end, with the last attempt that it is about.

    Returns where it stands now; asking twice gives the same. With a key that was used before,
    nothing happens, and it returns what it did then. Raises AlreadyFinished once it has completed
    or failed, the NotFound of the kind when there is no such job, or of another kind, and
    FieldError when the key came with another body.
    """
    asked: list[int] = []  # the attempt, where this call has found one to end

    def act() -> str:
        status, attempt = _request_cancel(connection, job_id, kind)
        asked.extend([] if attempt is None else [attempt])
        confirm()
        return status

    with db.write() as connection:
        status = Status(once(connection, idempotency, act))
    for attempt in asked:
        if status is Status.CANCELLED and on_cancelled is not None:
            on_cancelled()
        if on_asked is not None:
            on_asked(attempt)
    return status


def _request_cancel(
    connection: Connection, job_id: str, kind: JobKind | None
) -> tuple[Status, int | None]:
    """Where the job stands now, and its last attempt; None: there was nothing to end."""
    named = (JobRow.id == job_id, true() if kind is None else JobRow.kind == kind)
    queued = JobRow.status == Status.QUEUED
    statement = (
        update(JobRow)
        .where(*named, JobRow.status.in_([Status.QUEUED, Status.RUNNING]))
        .values(
            cancel_requested=True,
            status=case((queued, Status.CANCELLED), else_=JobRow.status),
            completed_at=case((queued, NOW), else_=null()),
            paused=case((queued, False), else_=JobRow.paused),
            message=case(
                (queued & (JobRow.attempt == 0), "cancelled before it started"),
                (queued, "cancelled"),
                else_=JobRow.message,
            ),
        )
        .returning(JobRow.status, JobRow.attempt)
    )
    moved = move(connection, statement, named)
    if moved is not None:
        return Status(moved.status), moved.attempt
    status = connection.scalar(select(JobRow.status).where(*named))
    if status is None:
        missing = NotFound if kind is None else _NOT_FOUND.get(kind, DataNotFound)
        raise missing(f"{job_id}: there is no such job")
    if status in {Status.COMPLETED, Status.FAILED}:
        raise AlreadyFinished(f"{job_id} has already {status}")
    return Status(status), None


def _is_news(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _claim(job_id: str, owner: str, row: Row[*tuple[object, ...]]) -> Claim:
    known = row._asdict()
    return Claim(job_id=job_id, owner=owner, kind=JobKind(known.pop("kind")), **known)
