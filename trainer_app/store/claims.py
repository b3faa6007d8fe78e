"""A claim on a job, and the one way to write in its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, update

from trainer_app.errors import LeaseLost
from trainer_app.store.database import NOW
from trainer_app.store.tables import JobKind, JobRow, Status

_LONGEST_MESSAGE = 4_000  # characters
# While versions are changed, the kinds of job that only a later one has are left to its processes.
KNOWN_KIND: Final = JobRow.kind.in_(tuple(JobKind))
# The jobs that a worker may take now.
CLAIMABLE: Final = (
    JobRow.status == Status.QUEUED,
    ~JobRow.cancel_requested,
    ~JobRow.paused,
    JobRow.not_before <= NOW,
    KNOWN_KIND,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to work on one job, until another attempt has it."""

    job_id: str
    kind: JobKind
    attempt: int  # the fencing token
    owner: str
    spec: str  # JSON
    user_id: int
    queue: str
    run_id: str | None  # the run that a request is about
    created_at: float  # unix seconds
    request_id: str | None  # X-Request-ID of the POST
    cause: str | None = None  # why the attempt before this one has ended
    checkpoint: str | None = None  # the newest whole one of the attempts before, by its name
    counted: int | None = None  # as which attempt the row had it: see lease.lift; None: as this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a row said when its holder had written to it."""

    status: Status
    cancel_requested: bool
    message: str


def hold(connection: Connection, claim: Claim, values: Mapping[str, object]) -> Held:
    """Write to a job in the name of its claim; the row stays locked to the transaction's end.

    Raises LeaseLost, and has written nothing, when the claim is no longer the one that counts.
    """
    row = connection.execute(
        update(JobRow)
        .where(*held(claim))
        .values(dict(values))
        .returning(JobRow.status, JobRow.cancel_requested, JobRow.message)
    ).one_or_none()
    if row is None:
        raise lost(claim)
    return Held(
        status=Status(row.status), cancel_requested=row.cancel_requested, message=row.message
    )


def held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """The conditions under which a row is still the claim's."""
    return (
        JobRow.id == claim.job_id,
        JobRow.attempt == claim.attempt,
        JobRow.owner == claim.owner,
        JobRow.status == Status.RUNNING,
    )


def lost(claim: Claim) -> LeaseLost:
    """What to raise when no row is."""
    return LeaseLost(f"{claim.job_id}: attempt {claim.attempt} no longer holds the lease")


def clean(message: str) -> str:
    """A message as every database takes it: valid UTF-8, no NUL, of bounded length."""
    text = message[:_LONGEST_MESSAGE].encode("utf-8", errors="replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
