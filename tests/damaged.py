"""Rows of the database that somebody has edited by hand."""

from __future__ import annotations

from typing import Final

from sqlalchemy import update

from trainer_app.store.database import Database
from trainer_app.store.tables import JobRow, RunRow

# What is no JSON object, by the shapes that it may have.
NO_OBJECTS: Final = (
    '{"seed": 1e400}',
    f'{{"seed": {10**400}}}',
    "",
    "{",
    "[]",
    "null",
    "3",
    '"{}"',
    '{"seed": NaN}',
    "[" * 100_000,
)
ASKED_LOST: Final = (
    "what it was asked for can no longer be read: its row in the database is damaged"
)
RESULT_LOST: Final = "what came of it can no longer be read: its row in the database is damaged"


def damage(database: Database, job_id: str, **columns: str) -> None:
    """Put these texts into columns of a job."""
    with database.write() as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(columns))


def damage_resolved(database: Database, run_id: str, resolved: str) -> None:
    """Put this text where a run has what its last attempt resolved."""
    with database.write() as connection:
        connection.execute(update(RunRow).where(RunRow.id == run_id).values(resolved=resolved))
