"""Finished models in the data bank: which lie there, which are still to be sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import aliased

from trainer_app.errors import ArtifactUploadFailed
from trainer_app.store.database import NOW, Database
from trainer_app.store.tables import JobRow, RunRow, Status

LOCAL: Final = "local"
DATA_BANK: Final = "data-bank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A model's tar.gz in the data bank."""

    file_id: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """A completed run whose model lies in the data bank."""

    run_id: str
    archive: Archive
    uploaded_seconds: float  # ago
    used_seconds: float | None  # since the last request to it; None: none is remembered


def of_run(db: Database, run_id: str) -> Archive | None:
    """What the data bank has of a run's model."""
    statement = select(RunRow.artifact_file_id, RunRow.archive_sha256, RunRow.archive_bytes)
    with db.read() as connection:
        row = connection.execute(statement.where(RunRow.id == run_id)).one_or_none()
    if row is None or row.artifact_file_id is None:
        return None
    return Archive(file_id=row.artifact_file_id, sha256=row.archive_sha256, bytes=row.archive_bytes)


def waiting(db: Database) -> list[str]:
    """The completed runs whose upload has failed, the oldest first."""
    statement = (
        select(JobRow.id)
        .join(RunRow, RunRow.id == JobRow.id)
        .where(*_unsent())
        .order_by(JobRow.completed_at)
    )
    with db.read() as connection:
        return list(connection.scalars(statement))


def record_late(db: Database, run_id: str, archive: Archive) -> bool:
    """Keep what was sent after a run had completed without; False when another was quicker."""
    with db.write() as connection:
        sent = connection.scalar(
            update(JobRow)
            .where(JobRow.id == run_id, *_unsent())
            .values(error_code=None, message="")
            .returning(JobRow.id)
        )
        if sent is not None:
            values = columns(archive) | {"artifact_storage": DATA_BANK}
            connection.execute(update(RunRow).where(RunRow.id == run_id).values(values))
    return sent is not None


def uploaded(db: Database) -> list[Uploaded]:
    """The completed runs whose model lies in the data bank, the longest there first."""
    request = aliased(JobRow)
    used_at = (
        select(func.max(func.coalesce(request.completed_at, request.created_at)))
        .where(request.run_id == RunRow.id)
        .scalar_subquery()
    )
    statement = (
        select(
            RunRow.id,
            RunRow.artifact_file_id,
            RunRow.archive_sha256,
            RunRow.archive_bytes,
            (NOW - RunRow.uploaded_at).label("uploaded"),
            (NOW - used_at).label("used"),
        )
        .join(JobRow, JobRow.id == RunRow.id)
        .where(JobRow.status == Status.COMPLETED, RunRow.artifact_storage == DATA_BANK)
        .order_by(RunRow.uploaded_at)
    )
    with db.read() as connection:
        rows = connection.execute(statement).all()
    return [
        Uploaded(
            run_id=row.id,
            archive=Archive(
                file_id=row.artifact_file_id, sha256=row.archive_sha256, bytes=row.archive_bytes
            ),
            uploaded_seconds=row.uploaded,
            used_seconds=row.used,
        )
        for row in rows
    ]


def _unsent() -> tuple[ColumnElement[bool], ...]:
    return (
        JobRow.status == Status.COMPLETED,
        JobRow.error_code == ArtifactUploadFailed.code,
    )


def columns(archive: Archive) -> dict[str, object]:
    """What the row of a run says of its archive."""
    return {
        "artifact_file_id": archive.file_id,
        "archive_sha256": archive.sha256,
        "archive_bytes": archive.bytes,
        "uploaded_at": NOW,
    }
