"""Keys by which a client may repeat a POST without doing it twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, or_, select, update

from trainer_app.errors import FieldError
from trainer_app.store.database import NOW, Database, insert
from trainer_app.store.tables import FINAL, IdempotencyRow, JobRow, TokenizerRow


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """An Idempotency-Key, where it was sent to, and what with."""

    endpoint: str  # "POST /runs/train"
    key: str  # at most 255 characters
    body_sha256: str


def claim_key(connection: Connection, key: IdempotencyKey | None, created_id: str) -> str | None:
    """Take the key for what the caller's transaction is about to create.

    None: nothing was created with it before, go on. Else the id of what was. Raises FieldError
    when that was asked for with another body.
    """
    if key is None:
        return None
    # Waits for a transaction that inserts the same key at this moment, and then sees what it did.
    inserted = connection.scalar(
        insert(connection.dialect.name, IdempotencyRow)
        .values(
            endpoint=key.endpoint,
            key=key.key,
            body_sha256=key.body_sha256,
            created_id=created_id,
            created_at=NOW,
        )
        .on_conflict_do_nothing()
        .returning(IdempotencyRow.key)
    )
    if inserted is not None:
        return None
    return _created(connection, key)


def once(connection: Connection, key: IdempotencyKey | None, act: Callable[[], str]) -> str:
    """What ``act`` answers, which creates nothing; with a key that was used before, the answer
    of then, and nothing is done.

    For the caller's transaction, with which the key is forgotten when ``act`` raises. Raises
    FieldError when the key came with another body.
    """
    earlier = claim_key(connection, key, created_id="")
    if earlier is not None:
        return earlier
    answer = act()
    if key is not None:
        connection.execute(
            update(IdempotencyRow)
            .where(IdempotencyRow.endpoint == key.endpoint, IdempotencyRow.key == key.key)
            .values(created_id=answer)
        )
    return answer


def find(db: Database, key: IdempotencyKey | None) -> str | None:
    """The id of what was created with this key, or what was answered; None: nothing was.

    For a repeat, which is to get its first answer even where what it asks for has become
    impossible. Raises FieldError when that was asked for with another body.
    """
    if key is None:
        return None
    with db.read() as connection:
        return _created(connection, key)


def _created(connection: Connection, key: IdempotencyKey) -> str | None:
    first = connection.execute(
        select(IdempotencyRow.body_sha256, IdempotencyRow.created_id).where(
            IdempotencyRow.endpoint == key.endpoint, IdempotencyRow.key == key.key
        )
    ).one_or_none()
    if first is None:
        return None
    if first.body_sha256 != key.body_sha256:
        raise FieldError("Idempotency-Key", "was sent before with another body")
    earlier: str = first.created_id
    return earlier


def purge(db: Database, *, older_than_seconds: float) -> int:
    """Forget the keys that nobody repeats any more; returns how many.

    Never one of a job that is queued or running: a repeat would be a second one.
    """
    tokenizer = (  # which a key knows by its name
        select(TokenizerRow.job_id)
        .where(TokenizerRow.id == IdempotencyRow.created_id)
        .correlate(IdempotencyRow)  # two statements up: by itself it is taken from the next alone
        .scalar_subquery()
    )
    lives = exists().where(
        or_(JobRow.id == IdempotencyRow.created_id, JobRow.id == tokenizer),
        JobRow.status.not_in(FINAL),
    )
    statement = (
        delete(IdempotencyRow)
        .where(IdempotencyRow.created_at < NOW - older_than_seconds, ~lives)
        .returning(IdempotencyRow.key)
    )
    with db.write() as connection:
        return len(connection.scalars(statement).all())
