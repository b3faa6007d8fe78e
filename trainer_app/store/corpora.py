"""Uploaded texts, named by the digest of their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Row, select
from sqlalchemy import delete as delete_rows

from trainer_app.errors import Conflict, CorpusNotFound
from trainer_app.store import pages
from trainer_app.store.database import NOW, Database, insert
from trainer_app.store.idempotency import IdempotencyKey, claim_key
from trainer_app.store.pages import Page
from trainer_app.store.tables import CorpusRow, JobRow, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """One uploaded text."""

    file_id: str  # sha256, hex
    bytes: int
    lines: int
    created_at: float  # unix seconds


def add(
    db: Database,
    file_id: str,
    bytes_: int,
    lines: int,
    *,
    idempotency: IdempotencyKey | None = None,
) -> Corpus:
    """Record a text whose file is in place; the same bytes give the row that is there already.

    Raises FieldError for a key that was sent before with other bytes.
    """
    with db.write() as connection:
        claim_key(connection, idempotency, file_id)
        connection.execute(
            insert(connection.dialect.name, CorpusRow)
            .values(file_id=file_id, bytes=bytes_, lines=lines, created_at=NOW)
            .on_conflict_do_nothing(index_elements=[CorpusRow.file_id])
        )
        # Before the commit: behind it, nothing but its own answer is left to be lost.
        return _get(connection, file_id)


def unless_recorded(db: Database, file_id: str, act: Callable[[], None]) -> None:
    """Call ``act``, before anybody can record the corpus, if it is not recorded.

    After an ``add`` whose outcome is not known: this waits for one that is being committed. Raises
    Unavailable.
    """
    with db.write() as connection:
        # What waits for a row that is not committed yet is an INSERT alone.
        is_new = connection.scalar(
            insert(connection.dialect.name, CorpusRow)
            .values(file_id=file_id, bytes=0, lines=0, created_at=NOW)
            .on_conflict_do_nothing(index_elements=[CorpusRow.file_id])
            .returning(CorpusRow.file_id)
        )
        if is_new is not None:
            connection.execute(delete_rows(CorpusRow).where(CorpusRow.file_id == file_id))
            act()


def get(db: Database, file_id: str) -> Corpus:
    """The corpus of this id. Raises CorpusNotFound."""
    with db.read() as connection:
        return _get(connection, file_id)


def _get(connection: Connection, file_id: str) -> Corpus:
    row = connection.execute(_CORPORA.where(CorpusRow.file_id == file_id)).one_or_none()
    if row is None:
        raise _missing(file_id)
    return _corpus(row)


def list_(db: Database, *, limit: int = 50, after: str | None = None) -> Page[Corpus]:
    """All corpora, newest first. Raises FieldError on a bad cursor."""
    with db.read() as connection:
        older = pages.older_than(after, time=CorpusRow.created_at, name=CorpusRow.file_id)
        rows = connection.execute(
            _CORPORA.where(*older)
            .order_by(CorpusRow.created_at.desc(), CorpusRow.file_id.desc())
            .limit(limit + 1)
        )
        found = [_corpus(row) for row in rows]
    return pages.cut(found, limit, lambda corpus: (corpus.created_at, corpus.file_id))


def delete(db: Database, file_id: str) -> None:
    """Forget a corpus; its file is the caller's to remove afterwards.

    Raises CorpusNotFound, and Conflict while a queued or running job reads it.
    """
    with db.write() as connection:
        # The lock waits for whoever is adding a job that reads it: the next query sees that job.
        found = connection.scalar(
            select(CorpusRow.file_id).where(CorpusRow.file_id == file_id).with_for_update()
        )
        if found is None:
            raise _missing(file_id)
        user = connection.scalar(
            select(JobRow.id)
            .where(
                JobRow.corpus_file_id == file_id,
                JobRow.status.in_([Status.QUEUED, Status.RUNNING]),
            )
            .limit(1)
        )
        if user is not None:
            raise Conflict(f"{file_id}: {user} still reads this corpus")
        connection.execute(delete_rows(CorpusRow).where(CorpusRow.file_id == file_id))


def _missing(file_id: str) -> CorpusNotFound:
    return CorpusNotFound(f"{file_id}: there is no such corpus")


_CORPORA: Final = select(CorpusRow.file_id, CorpusRow.bytes, CorpusRow.lines, CorpusRow.created_at)


def _corpus(row: Row[str, int, int, float]) -> Corpus:
    return Corpus(file_id=row.file_id, bytes=row.bytes, lines=row.lines, created_at=row.created_at)
