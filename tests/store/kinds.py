"""Jobs of a kind that only a later version has."""

from __future__ import annotations

from sqlalchemy import text, update

from trainer_app.store.database import Database
from trainer_app.store.tables import JobRow


def make_later(database: Database, job_id: str) -> None:
    """Let a job be one that a later version, whose schema knows its kind, was asked for."""
    with database.write() as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        else:
            dropped = "ALTER TABLE jobs DROP CONSTRAINT IF EXISTS ck_jobs_kind_known"
            connection.execute(text(dropped))
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(kind="distil"))
