"""Training runs, as a client sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
)
from sqlalchemy.engine import RowMapping
from sqlalchemy.orm import aliased

from trainer_app.core.json_spec import ASKED_LOST
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import RowDamaged, RunNotFound
from trainer_app.store import ids, pages
from trainer_app.store.database import Database
from trainer_app.store.idempotency import IdempotencyKey, claim_key
from trainer_app.store.jobs import enqueue
from trainer_app.store.pages import Page
from trainer_app.store.tables import JobKind, JobRow, RunRow, RunTagRow, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run and where it stands. Times are unix seconds, losses nats per predicted token."""

    run_id: str
    status: Status
    last_heartbeat_ts: float | None
    message: str
    attempt: int
    crashes: int
    cancel_requested: bool
    paused: bool
    progress: int  # percent
    epoch: int  # 0-based
    step: int  # optimizer steps done
    total_steps: int | None
    train_loss: float | None
    val_loss: float | None
    tokens_per_sec: float | None
    eta_sec: float | None
    queue: str
    queue_position: int | None  # jobs before it; None unless it waits for a worker
    created_at: float
    started_at: float | None
    completed_at: float | None
    error_code: str | None
    model_family: str
    model_size: str
    user_id: int
    tags: tuple[str, ...]
    checkpoint: str | None
    checkpoint_step: int | None
    loss_chain: str | None  # that the curve comes to at the newest checkpoint; None: none yet
    loss_chain_step: int | None  # at which step
    result: str | None  # JSON
    artifact_storage: str | None
    artifact_sha256: str | None
    artifact_file_id: str | None  # in the data bank
    # As its last attempt resolved it; as asked for before there was one, or where what it wrote
    # down is damaged. None: what was asked for is damaged.
    asked: TrainSpec | None

    @property
    def spec(self) -> TrainSpec:
        """What it was asked for, for whoever cannot do without. Raises RowDamaged."""
        if self.asked is None:
            raise RowDamaged(f"{self.run_id}: {ASKED_LOST}")
        return self.asked


def create(
    db: Database,
    spec: TrainSpec,
    *,
    queue: str,
    request_id: str | None = None,
    remote_corpora: bool = False,
    idempotency: IdempotencyKey | None = None,
) -> Run:
    """Queue a run; with a key that was used before, the run that was queued then.

    Raises CorpusNotFound when its corpus_file_id has been deleted, FieldError when the key came
    with another body.
    """
    run_id = ids.new_id(ids.RUN)
    with db.write() as connection:
        earlier = claim_key(connection, idempotency, run_id)
        if earlier is None:
            enqueue(
                connection,
                job_id=run_id,
                kind=JobKind.TRAIN,
                spec=spec.to_json(),
                queue=queue,
                user_id=spec.user_id,
                priority=spec.priority,
                corpus_file_id=spec.corpus_file_id,
                tokenizer_id=spec.tokenizer_id,
                request_id=request_id,
                remote_corpora=remote_corpora,
            )
            connection.execute(
                insert(RunRow).values(
                    id=run_id, model_family=spec.model_family, model_size=spec.model_size
                )
            )
            tags = [{"run_id": run_id, "tag": tag} for tag in dict.fromkeys(spec.tags)]
            if tags:
                connection.execute(insert(RunTagRow), tags)
        # Before the commit: behind it, nothing but its own answer is left to be lost.
        return _get(connection, earlier or run_id)


def get(db: Database, run_id: str) -> Run:
    """The run of this id. Raises RunNotFound."""
    with db.read() as connection:
        return _get(connection, run_id)


def _get(connection: Connection, run_id: str) -> Run:
    row = connection.execute(_ONE_RUN, {"run_id": run_id}).mappings().one_or_none()
    if row is None:
        raise RunNotFound(f"{run_id}: there is no such run")
    return _run(row)


def queued(db: Database) -> Sequence[str]:
    """The ids of the runs that no worker has yet, paused ones among them."""
    statement = select(JobRow.id).where(
        JobRow.kind == JobKind.TRAIN, JobRow.status == Status.QUEUED
    )
    with db.read() as connection:
        return connection.scalars(statement).all()


def list_(
    db: Database,
    *,
    status: str | None = None,
    model_family: str | None = None,
    user_id: int | None = None,
    tag: str | None = None,
    limit: int = 50,
    after: str | None = None,
) -> Page[Run]:
    """The runs that fit all that is given, newest first. Raises FieldError on a bad cursor."""
    statement = (
        _runs(_numbered.c.position)
        .outerjoin(_numbered, _numbered.c.id == JobRow.id)
        .where(JobRow.kind == JobKind.TRAIN)
    )
    if status is not None:
        statement = statement.where(JobRow.status == status)
    if model_family is not None:
        statement = statement.where(RunRow.model_family == model_family)
    if user_id is not None:
        statement = statement.where(JobRow.user_id == user_id)
    if tag is not None:
        tagged = select(RunTagRow.run_id).where(RunTagRow.tag == tag)
        statement = statement.where(RunRow.id.in_(tagged))
    with db.read() as connection:
        older = pages.older_than(after, time=JobRow.created_at, name=JobRow.id)
        statement = statement.where(*older).order_by(JobRow.created_at.desc(), JobRow.id.desc())
        runs = [_run(row) for row in connection.execute(statement.limit(limit + 1)).mappings()]
    return pages.cut(runs, limit, lambda run: (run.created_at, run.run_id))


# The position of one job: those ahead of it are counted, and only while it is queued.
_ahead: Final = aliased(JobRow)
_COUNTED: Final = case(
    (
        and_(JobRow.status == Status.QUEUED, ~JobRow.paused),
        select(func.count())
        .where(
            _ahead.status == Status.QUEUED,
            ~_ahead.paused,
            _ahead.queue == JobRow.queue,
            or_(
                _ahead.priority > JobRow.priority,
                and_(
                    _ahead.priority == JobRow.priority,
                    or_(
                        _ahead.created_at < JobRow.created_at,
                        and_(_ahead.created_at == JobRow.created_at, _ahead.id < JobRow.id),
                    ),
                ),
            ),
        )
        .scalar_subquery(),
    ),
    else_=None,
)

# The positions of many: to count for each of them would take queue times page.
_queued: Final = aliased(JobRow)
_numbered: Final = (
    select(
        _queued.id,
        (
            func.row_number().over(
                partition_by=_queued.queue,
                order_by=[_queued.priority.desc(), _queued.created_at, _queued.id],
            )
            - 1
        ).label("position"),
    )
    .where(_queued.status == Status.QUEUED, ~_queued.paused)
    .subquery()
)


def _runs(position: ColumnElement[int] | ColumnElement[int | None]) -> Select[*tuple[object, ...]]:
    return select(
        JobRow.id.label("run_id"),
        JobRow.status,
        JobRow.heartbeat_at.label("last_heartbeat_ts"),
        JobRow.message,
        JobRow.attempt,
        JobRow.crashes,
        JobRow.cancel_requested,
        JobRow.paused,
        JobRow.queue,
        JobRow.created_at,
        JobRow.started_at,
        JobRow.completed_at,
        JobRow.error_code,
        JobRow.user_id,
        JobRow.checkpoint,
        JobRow.result,
        JobRow.spec,
        RunRow.progress,
        RunRow.epoch,
        RunRow.step,
        RunRow.total_steps,
        RunRow.train_loss,
        RunRow.val_loss,
        RunRow.tokens_per_sec,
        RunRow.eta_sec,
        RunRow.model_family,
        RunRow.model_size,
        RunRow.resolved,
        RunRow.checkpoint_step,
        RunRow.loss_chain,
        RunRow.loss_chain_step,
        RunRow.artifact_storage,
        RunRow.artifact_sha256,
        RunRow.artifact_file_id,
        position.label("queue_position"),
    ).join(RunRow, RunRow.id == JobRow.id)


# Made once: to put the statement together takes longer than to run it.
_ONE_RUN: Final = _runs(_COUNTED).where(RunRow.id == bindparam("run_id"))


def _run(row: RowMapping) -> Run:
    fields = dict(row)
    asked, resolved = fields.pop("spec"), fields.pop("resolved")
    spec = TrainSpec.read(asked, over=resolved) or TrainSpec.read(asked)
    fields |= {"asked": spec, "tags": () if spec is None else spec.tags}
    fields["status"] = Status(row["status"])
    if row["loss_chain_step"] == 0:  # it begins there: there is no checkpoint that it could be of
        fields |= {"loss_chain": None, "loss_chain_step": None}
    return Run(**fields)
