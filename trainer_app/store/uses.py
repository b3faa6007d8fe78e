"""What jobs that are not finished read, and what no run has use for: the guards of clean-up."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, not_, or_, select
from sqlalchemy.orm import aliased

from trainer_app.core.spec import TrainSpec
from trainer_app.store.database import NOW, Database
from trainer_app.store.tables import IdempotencyRow, JobKind, JobRow, Status, TokenizerRow

_LIVE = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedTokenizer:
    """A finished tokenizer that no run names which could still need it."""

    tokenizer_id: str
    unused_seconds: float  # since it was trained, or since the last run that named it ended


def corpora_in_use(db: Database) -> frozenset[str]:
    """The file ids of the corpora that queued and running jobs read, evaluations included."""
    live = aliased(JobRow)
    of_runs = select(live.run_id).where(live.status.in_(_LIVE))
    statement = select(JobRow.corpus_file_id).where(
        or_(JobRow.status.in_(_LIVE), JobRow.id.in_(of_runs))
    )
    with db.read() as connection:
        return frozenset(filter(None, connection.scalars(statement)))


def models_in_use(db: Database) -> frozenset[str]:
    """The runs whose models queued and running jobs read: requests to them, and fine-tuning."""
    with db.read() as connection:
        rows = connection.execute(
            select(JobRow.kind, JobRow.run_id, JobRow.spec).where(JobRow.status.in_(_LIVE))
        ).all()
    bases = (
        TrainSpec.from_json(row.spec).pretrained_run_id for row in rows if row.kind == JobKind.TRAIN
    )
    return frozenset(filter(None, [*bases, *(row.run_id for row in rows)]))


def unused_tokenizers(db: Database, *, min_seconds: float) -> list[UnusedTokenizer]:
    """The finished tokenizers without use for so long, the longest unused first.

    A tokenizer that a queued, running or completed run names is in use for ever: fine-tuning
    from that run needs it.
    """
    unused = (NOW - _last_use()).label("unused")
    statement = (
        select(TokenizerRow.id, unused)
        .join(JobRow, JobRow.id == TokenizerRow.job_id)
        .where(*_without_use(min_seconds))
        .order_by(unused.desc())
    )
    with db.read() as connection:
        return [
            UnusedTokenizer(tokenizer_id=row.id, unused_seconds=row.unused)
            for row in connection.execute(statement)
        ]


def forget_tokenizer(db: Database, tokenizer_id: str, *, min_seconds: float) -> bool:
    """Delete an unused tokenizer's rows; False when it has come into use.

    Its files are the caller's to remove afterwards.
    """
    with db.write() as connection:
        job_id = connection.scalar(
            select(TokenizerRow.job_id)
            .join(JobRow, JobRow.id == TokenizerRow.job_id)
            .where(TokenizerRow.id == tokenizer_id, *_without_use(min_seconds))
            .with_for_update(of=TokenizerRow)
        )
        if job_id is None:
            return False
        connection.execute(delete(IdempotencyRow).where(IdempotencyRow.created_id == tokenizer_id))
        connection.execute(delete(TokenizerRow).where(TokenizerRow.id == tokenizer_id))
        connection.execute(delete(JobRow).where(JobRow.id == job_id))
    return True


_run = aliased(JobRow)


def _names_it() -> ColumnElement[bool]:
    return and_(_run.tokenizer_id == TokenizerRow.id, _run.kind == JobKind.TRAIN)


def _last_use() -> ColumnElement[float]:
    """When it was trained, or when the last run that named it ended, in unix seconds."""
    last_run = select(func.max(_run.completed_at)).where(_names_it()).scalar_subquery()
    return case((last_run > JobRow.completed_at, last_run), else_=JobRow.completed_at)


def _without_use(min_seconds: float) -> tuple[ColumnElement[bool], ...]:
    needs_it = and_(_names_it(), _run.status.in_([*_LIVE, Status.COMPLETED]))
    return (
        JobRow.status == Status.COMPLETED,
        not_(exists().where(needs_it)),
        _last_use() <= NOW - min_seconds,
    )
