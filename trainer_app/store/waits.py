"""Queued jobs that wait for a worker which there is not, and what they say of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import select, update

from trainer_app.store.claims import CLAIMABLE, KNOWN_KIND, clean
from trainer_app.store.database import Database
from trainer_app.store.tables import JobRow, Status

_WAITS: Final = "waits for a worker of queue "


def queues(db: Database) -> frozenset[str]:
    """The queues of the jobs that a worker could take now."""
    with db.read() as connection:
        return frozenset(connection.scalars(select(JobRow.queue).where(*CLAIMABLE).distinct()))


def tell(db: Database, queue: str) -> list[str]:
    """Have the jobs say that no worker takes from their queue; those that did not, by id."""
    message = clean(f"{_WAITS}{queue}, of which there is none")
    statement = (
        update(JobRow)
        .where(*CLAIMABLE, JobRow.queue == queue, JobRow.message != message)
        .values(message=message)
        .returning(JobRow.id)
    )
    with db.write() as connection:
        return list(connection.scalars(statement))


def take_back(db: Database, served: Collection[str]) -> None:
    """Have those say it no longer whose queue a worker takes from again."""
    said = (
        JobRow.status == Status.QUEUED,
        KNOWN_KIND,
        JobRow.message.startswith(_WAITS, autoescape=True),
        JobRow.queue.in_(sorted(served)),
    )
    with db.read() as connection:  # nearly always none: nobody is to wait for that
        found = list(connection.scalars(select(JobRow.id).where(*said)))
    if found:
        with db.write() as connection:
            connection.execute(update(JobRow).where(JobRow.id.in_(found), *said).values(message=""))
