"""What jobs that are not finished read, and what no run has use for: the guards of clean-up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, not_, or_, select, update
from sqlalchemy.orm import aliased

from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.spec import TrainSpec
from trainer_app.store.database import NOW, Database
from trainer_app.store.tables import IdempotencyRow, JobKind, JobRow, RunRow, Status, TokenizerRow
from trainer_app.store.upkeep import CHUNK

_DAY: Final = 86_400.0  # seconds
_LIVE = (Status.QUEUED, Status.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedTokenizer:
    """A finished tokenizer that no run names which could still need it."""

    tokenizer_id: str
    unused_seconds: float  # since it was trained, or since the last run that named it ended


def corpora_in_use(db: Database) -> frozenset[str]:
    """The file ids of the corpora that queued and running jobs read, evaluations included."""
    live = aliased(JobRow)
    # An evaluation names what it reads itself, and ``corpora.delete`` goes by that alone. One that
    # the version before has queued names nothing, nor does one of a text of its own: what its run
    # was trained on is not cleaned up meanwhile. Requests of other kinds read no corpus.
    evaluated = select(live.run_id).where(
        live.status.in_(_LIVE), live.kind == JobKind.EVALUATE, live.corpus_file_id.is_(None)
    )
    statement = select(JobRow.corpus_file_id).where(
        or_(JobRow.status.in_(_LIVE), JobRow.id.in_(evaluated))
    )
    with db.read() as connection:
        return frozenset(filter(None, connection.scalars(statement)))


def models_in_use(db: Database) -> frozenset[str]:
    """The runs whose models queued and running jobs read: requests to them, and fine-tuning."""
    live = JobRow.status.in_(_LIVE)
    with db.read() as connection:
        asked = connection.scalars(select(JobRow.run_id).where(live).distinct()).all()
        # of runs alone: a request's spec may hold a text of megabytes
        specs = connection.scalars(
            select(JobRow.spec).where(live, JobRow.kind == JobKind.TRAIN)
        ).all()
    # A run whose row is damaged will never begin, and one that has begun fetches what is missing.
    read = filter(None, map(TrainSpec.read, specs))
    return frozenset(filter(None, [*(spec.pretrained_run_id for spec in read), *asked]))


def texts_in_use(db: Database, *, failed_seconds: float) -> frozenset[str]:
    """The digests of the texts whose token ids are read by jobs that live or may be resumed.

    Failed and cancelled runs may be, until ``failed_seconds`` after their end.
    """
    ended = JobRow.status.in_([Status.FAILED, Status.CANCELLED])
    live = aliased(JobRow)
    of_evaluations = select(live.run_id).where(
        live.status.in_(_LIVE), live.kind == JobKind.EVALUATE
    )
    train = and_(
        JobRow.kind == JobKind.TRAIN,
        or_(
            JobRow.status.in_(_LIVE),
            and_(ended, JobRow.completed_at > NOW - failed_seconds),
            JobRow.id.in_(of_evaluations),
        ),
    )
    evaluate = and_(JobRow.kind == JobKind.EVALUATE, JobRow.status.in_(_LIVE))
    with db.read() as connection:
        rows = connection.execute(
            select(JobRow.kind, JobRow.spec).where(or_(train, evaluate))
        ).all()
    digests = (_text_of(row.kind, row.spec) for row in rows)
    return frozenset(digest for digest in digests if digest is not None)


def _text_of(kind: str, spec: str) -> str | None:
    """The digest of the text that a job reads; None: no text, or its row is damaged.

    A job whose row is damaged will never begin, and one that has begun makes token ids again.
    """
    if kind == JobKind.TRAIN:
        run = TrainSpec.read(spec)
        return None if run is None else run.corpus_sha256
    evaluation = EvaluateSpec.read(spec)
    return None if evaluation is None else evaluation.text_sha256


def spent_jobs(db: Database, job_ids: Sequence[str], *, failed_seconds: float) -> dict[str, str]:
    """Those of these runs and tokenizers that nobody will take up again, and why.

    Completed ones, and those that have failed or were cancelled ``failed_seconds`` ago.
    """
    found = {}
    for start in range(0, len(job_ids), CHUNK):
        ids = job_ids[start : start + CHUNK]
        statement = select(
            JobRow.id, JobRow.status, (NOW - JobRow.completed_at).label("seconds")
        ).where(JobRow.id.in_(ids), *_spent(failed_seconds))
        with db.read() as connection:
            for row in connection.execute(statement):
                found[row.id] = f"{row.status} {row.seconds / _DAY:.1f} days ago"
    return found


@contextmanager
def spent_job(db: Database, job_id: str, *, failed_seconds: float) -> Iterator[bool]:
    """Whether the job is still one of ``spent_jobs``; nobody can resume it within the block.

    Its row then names no checkpoint any more: to be deleted within the block, and in a moment.
    """
    with db.write() as connection:
        is_spent = connection.scalar(
            update(JobRow)
            .where(JobRow.id == job_id, *_spent(failed_seconds))
            .values(checkpoint=None)
            .returning(JobRow.id)
        )
        connection.execute(update(RunRow).where(RunRow.id == is_spent).values(checkpoint_step=None))
        yield is_spent is not None


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


@contextmanager
def forgotten_tokenizer(db: Database, tokenizer_id: str, *, min_seconds: float) -> Iterator[bool]:
    """Delete an unused tokenizer's rows; False when it has come into use.

    Its name is free once the block has ended: its folder is to be out of the way by then.
    """
    named = select(TokenizerRow.job_id).where(TokenizerRow.id == tokenizer_id)
    with db.write() as connection:
        # First, and alone: a run that was queued while this waited is seen by what comes after.
        connection.execute(named.with_for_update(of=TokenizerRow))
        job_id = connection.scalar(
            named.join(JobRow, JobRow.id == TokenizerRow.job_id).where(*_without_use(min_seconds))
        )
        if job_id is None:
            yield False
            return
        connection.execute(delete(IdempotencyRow).where(IdempotencyRow.created_id == tokenizer_id))
        connection.execute(delete(TokenizerRow).where(TokenizerRow.id == tokenizer_id))
        connection.execute(delete(JobRow).where(JobRow.id == job_id))
        yield True


def _spent(failed_seconds: float) -> tuple[ColumnElement[bool], ...]:
    ended = JobRow.status.in_([Status.FAILED, Status.CANCELLED])
    return (
        JobRow.kind.in_([JobKind.TRAIN, JobKind.TOKENIZER]),
        or_(
            JobRow.status == Status.COMPLETED,
            and_(ended, JobRow.completed_at <= NOW - failed_seconds),
        ),
    )


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
