"""How an attempt at a job ends: for good, or queued again for the next one."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, case, func, literal, null, select, true, update

from trainer_app.core.json_spec import json_object
from trainer_app.store.claims import Claim, clean, held, hold, lost
from trainer_app.store.database import NOW, Database
from trainer_app.store.tables import FINAL, JobKind, JobRow, RunRow, Status, TokenizerRow
from trainer_app.store.uploads import LOCAL, Archive, columns

_CANCELLED: Final = "cancelled"  # the message of a job that was to be queued again, and is not

_PUBLISHED_BY: Final = "attempt"  # in the result of a run that has published, and not ended yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Where a job stands once an attempt at it has ended, and what it says."""

    status: Status
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Where a finished model or tokenizer is, and the digest of what was published."""

    storage: str  # "local", "data-bank"
    sha256: str  # of manifest.json
    archive: Archive | None = None  # in the data bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A run's model in its place."""

    result: str  # JSON object: what the run has come to
    sha256: str  # of manifest.json


def record_published(db: Database, claim: Claim, model: Published) -> None:
    """Write down that a run has published its model, before it ends.

    From now on it has completed, also where its worker is lost: see ``upkeep.reap``. The result
    gets the attempt until it ends. Raises LeaseLost.
    """
    marked = json.dumps(json.loads(model.result) | {_PUBLISHED_BY: claim.attempt})
    with db.write() as connection:
        hold(connection, claim, {"result": marked})
        record_artifact(connection, claim.job_id, model)


def record_artifact(
    connection: Connection, run_id: str, model: Published, **values: object
) -> None:
    """Where the model of a run is, with other ``values`` of its row."""
    artifact = {"artifact_storage": LOCAL, "artifact_sha256": model.sha256}
    connection.execute(update(RunRow).where(RunRow.id == run_id).values(artifact | values))


def has_published(result: str | None, attempt: int) -> bool:
    """Whether it is this attempt at a run that has published its model, by the row's result.

    Workers of the version before leave there, when they claim a run, what an attempt before theirs
    has left. A result that is damaged tells nothing: whether the model is there, its folder does.
    """
    if result is None:
        return False
    return (json_object(result) or {}).get(_PUBLISHED_BY) == attempt


def finish(
    db: Database,
    claim: Claim,
    status: str,
    *,
    result: str | None = None,
    error_code: str | None = None,
    message: str = "",
    artifact: Artifact | None = None,
) -> Ended:
    """End the job as completed, failed or cancelled; as what it stands then. Raises LeaseLost."""
    if status not in FINAL:
        raise ValueError(f"status: a job ends as one of {', '.join(FINAL)}, not as {status}")
    with db.write() as connection:
        hold(
            connection,
            claim,
            {
                "status": status,
                "owner": None,
                "lease_until": None,
                "completed_at": NOW,
                "paused": False,
                "result": result,
                "error_code": error_code,
                "message": clean(message),
            },
        )
        values: dict[str, object] = {"eta_sec": None}
        if status == Status.COMPLETED:
            values["progress"] = 100
        if artifact is not None and claim.kind is JobKind.TOKENIZER:
            connection.execute(
                update(TokenizerRow)
                .where(TokenizerRow.job_id == claim.job_id)
                .values(artifact_sha256=artifact.sha256)
            )
        elif artifact is not None:
            values |= {"artifact_storage": artifact.storage, "artifact_sha256": artifact.sha256}
            if artifact.archive is not None:
                values |= columns(artifact.archive)
        connection.execute(update(RunRow).where(RunRow.id == claim.job_id).values(values))
    return Ended(status=Status(status), message=clean(message))


def hand_back(db: Database, claim: Claim, *, message: str, cause: str | None = None) -> Ended:
    """Queue the job again, as when its worker shuts down; no crash is charged.

    ``cause``: why, as the next attempt is to tell; as the message without it.

    Returns where it stands now: cancelled, if that was asked for. Raises LeaseLost.
    """
    return _requeue(
        db,
        claim,
        message=message,
        paused_message=message,
        cause=cause,
        values={"not_before": 0.0},
    )


def retries(db: Database, claim: Claim) -> int:
    """How many retries count by now: fewer than at the claim when it got further since.

    Raises LeaseLost.
    """
    with db.read() as connection:
        counted = connection.scalar(select(JobRow.retries).where(*held(claim)))
    if counted is None:
        raise lost(claim)
    return counted


def retry_later(
    db: Database,
    claim: Claim,
    *,
    delay_seconds: float,
    message: str,
    paused_message: str | None = None,
    cause: str | None = None,
) -> Ended:
    """Queue the job again after a failure that is not its user's; counts a retry.

    ``paused_message``: what a run says instead that is to be paused; None: the same.

    Returns where it stands now: cancelled, if that was asked for. Raises LeaseLost.
    """
    before = func.coalesce(JobRow.setback_step, 0)
    # What was told last may be older than what was saved.
    reached = case(
        (RunRow.checkpoint_step > RunRow.step, RunRow.checkpoint_step), else_=RunRow.step
    )
    step = func.coalesce(select(reached).where(RunRow.id == claim.job_id).scalar_subquery(), 0)
    values = {
        "not_before": NOW + delay_seconds,
        "heartbeat_at": NOW,  # by the clock that the delay was given by
        "retries": JobRow.retries + 1,
        "setback_step": case((step > before, step), else_=before),
    }
    return _requeue(
        db,
        claim,
        message=message,
        paused_message=paused_message or message,
        cause=cause,
        values=values,
    )


def stands(db: Database, claim: Claim, *, messages: Collection[str]) -> Ended | None:
    """Where the job stands if this attempt has ended it with one of these; None: it has not.

    For whoever ended it and got no answer: the attempt then looks lost to the one who ended it.
    """
    with db.read() as connection:
        row = connection.execute(
            select(JobRow.status, JobRow.message).where(
                JobRow.id == claim.job_id,
                JobRow.attempt == claim.attempt,
                JobRow.status != Status.RUNNING,
            )
        ).one_or_none()
    if row is None or row.message not in {_CANCELLED, *map(clean, messages)}:
        return None
    return Ended(status=Status(row.status), message=row.message)


def _requeue(
    db: Database,
    claim: Claim,
    *,
    message: str,
    paused_message: str,
    cause: str | None,
    values: Mapping[str, object],
) -> Ended:
    # A queued row that is also asked to be cancelled would wait for ever: nobody may claim it.
    asked = JobRow.cancel_requested.is_(true())
    with db.write() as connection:
        written = hold(
            connection,
            claim,
            {
                "status": case((asked, Status.CANCELLED), else_=literal(Status.QUEUED)),
                "completed_at": case((asked, NOW), else_=null()),
                "paused": case((asked, False), else_=JobRow.paused),
                "owner": None,
                "lease_until": None,
                "message": case(
                    (asked, literal(_CANCELLED)),
                    (JobRow.paused, literal(clean(paused_message))),
                    else_=literal(clean(message)),
                ),
                "cause": clean(cause or message),
                **values,
            },
        )
    return Ended(status=written.status, message=written.message)
