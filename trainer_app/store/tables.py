"""The tables. Times are unix seconds by the database's clock; JSON is kept as text."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    TOKENIZER = "tokenizer"
    GENERATE = "generate"
    SCORE = "score"
    EVALUATE = "evaluate"
    CHAT = "chat"


FINAL: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)

_NAME: Final = 128  # characters of a name that a client may choose
_LIVE_TURN: Final = "kind = 'chat' AND status IN ('queued', 'running')"


def _one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


class Table(DeclarativeBase):
    """What all tables share: the names of constraints and the types of columns."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[type, Text | Double[float] | BigInteger | Boolean]] = {
        str: Text(),
        float: Double(),
        int: BigInteger(),
        bool: Boolean(),
    }


class JobRow(Table):
    """One job of any kind, with the lease on it. The row owns the job; a message only wakes."""

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("kind", JobKind),
        _one_of("status", Status),
        CheckConstraint("priority BETWEEN 0 AND 9", name="priority_range"),
        CheckConstraint("attempt >= 0 AND crashes >= 0 AND retries >= 0", name="counts"),
        CheckConstraint(
            "(status = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)",
            name="running_is_leased",
        ),
        CheckConstraint(
            "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)",
            name="final_has_end",
        ),
        # Newest first, alone or by status or user.
        Index(None, "kind", "created_at", "id"),
        Index(None, "kind", "status", "created_at", "id"),
        Index(None, "kind", "user_id", "created_at", "id"),
        # What housekeeping and the queue position look through: few rows of many.
        Index(
            "ix_jobs_queued",
            "queue",
            "priority",
            "created_at",
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_running",
            "lease_until",
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
        # What was asked of a run, newest last.
        Index(None, "run_id", "kind", "topic", "created_at"),
        # The turns of a session are taken one after another.
        Index(
            "uq_jobs_live_turn",
            "topic",
            unique=True,
            sqlite_where=text(_LIVE_TURN),
            postgresql_where=text(_LIVE_TURN),
        ),
        # Who uses what.
        Index(None, "corpus_file_id"),
        Index(None, "tokenizer_id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[int]
    queue: Mapped[str] = mapped_column(String(255))
    priority: Mapped[int] = mapped_column(Integer)  # 0 to 9, higher first
    spec: Mapped[str]
    result: Mapped[str | None]
    # The lease; attempt is the fencing token.
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    owner: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[float | None]
    heartbeat_at: Mapped[float | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    # Held back until it is resumed. A server default: workers of the version before write rows too.
    paused: Mapped[bool] = mapped_column(default=False, server_default=false())
    crashes: Mapped[int] = mapped_column(Integer, default=0)  # attempts whose worker died
    retries: Mapped[int] = mapped_column(Integer, default=0)  # attempts that the system failed
    setback_step: Mapped[int | None]  # how far the run had come by the last of both
    # When to wake a worker. 0 is no back-off, whatever the clock says.
    not_before: Mapped[float] = mapped_column(default=0.0)
    dispatched_at: Mapped[float | None]
    dispatches: Mapped[int] = mapped_column(Integer, default=0)
    # For people.
    message: Mapped[str] = mapped_column(default="")
    cause: Mapped[str | None]  # why there is another attempt after the last one
    error_code: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    # What it belongs to and what it reads.
    run_id: Mapped[str | None] = mapped_column(
        ForeignKey("jobs.id")
    )  # of which run it is a request
    topic: Mapped[str | None] = mapped_column(String(64))  # an evaluation's split, a chat's session
    corpus_file_id: Mapped[str | None] = mapped_column(String(64))
    tokenizer_id: Mapped[str | None] = mapped_column(String(_NAME))
    checkpoint: Mapped[str | None]  # the newest one that is whole
    request_id: Mapped[str | None] = mapped_column(String(64))  # X-Request-ID of its POST


class RunRow(Table):
    """What a training job has beyond a job: its model, its progress, its artifact."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("progress BETWEEN 0 AND 100", name="progress_range"),
        CheckConstraint("step >= 0 AND total_steps >= 0 AND epoch >= 0", name="counts"),
        Index(None, "model_family"),
    )

    id: Mapped[str] = mapped_column(ForeignKey(JobRow.id), primary_key=True)
    model_family: Mapped[str] = mapped_column(String(64))
    model_size: Mapped[str] = mapped_column(String(64))
    # JSON: fields of the spec as its last attempt resolved them. The spec stays as it was asked
    # for, so that an attempt on another device resolves anew. None: no attempt has yet.
    resolved: Mapped[str | None]
    progress: Mapped[int] = mapped_column(Integer, default=0)  # percent
    step: Mapped[int] = mapped_column(default=0)  # optimizer steps done
    total_steps: Mapped[int | None]
    checkpoint_step: Mapped[int | None]
    # What the curve comes to at the newest checkpoint, or at the one that was resumed from. With a
    # step of its own: workers of the version before move the one above alone.
    loss_chain: Mapped[str | None] = mapped_column(String(64))
    loss_chain_step: Mapped[int | None]
    epoch: Mapped[int] = mapped_column(default=0)  # 0-based
    train_loss: Mapped[float | None]  # nats per predicted token
    val_loss: Mapped[float | None]
    tokens_per_sec: Mapped[float | None]
    eta_sec: Mapped[float | None]
    artifact_storage: Mapped[str | None] = mapped_column(String(16))  # "local", "data-bank"
    artifact_sha256: Mapped[str | None] = mapped_column(String(64))  # of manifest.json
    # The tar.gz in the data bank.
    artifact_file_id: Mapped[str | None] = mapped_column(String(_NAME))
    archive_sha256: Mapped[str | None] = mapped_column(String(64))
    archive_bytes: Mapped[int | None]
    uploaded_at: Mapped[float | None]


class RunTagRow(Table):
    """One tag of a run, to find runs by; the spec keeps the order in which they were given."""

    __tablename__ = "run_tags"
    __table_args__ = (Index(None, "tag", "run_id"),)

    run_id: Mapped[str] = mapped_column(ForeignKey(RunRow.id), primary_key=True)
    tag: Mapped[str] = mapped_column(String(255), primary_key=True)


class MetricRow(Table):
    """One point of a run's curve; what an attempt did again overwrites what it did before."""

    __tablename__ = "metrics"
    __table_args__ = (CheckConstraint("step >= 0", name="step_range"),)

    run_id: Mapped[str] = mapped_column(ForeignKey(RunRow.id), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    train_loss: Mapped[float | None]
    val_loss: Mapped[float | None]
    learning_rate: Mapped[float | None]
    grad_norm: Mapped[float | None]  # before clipping
    tokens_per_sec: Mapped[float | None]
    step_ms: Mapped[float | None]
    mfu: Mapped[float | None]  # model FLOPs utilisation, 0 to 1
    chain: Mapped[str | None] = mapped_column(String(64))  # of the losses up to here
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[float]


class TokenizerRow(Table):
    """A tokenizer's name and the job that trains it, whose result holds what was measured."""

    __tablename__ = "tokenizers"

    id: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey(JobRow.id), unique=True)
    method: Mapped[str] = mapped_column(String(32))
    # Of manifest.json; None: it is not finished, or the version before has trained it.
    artifact_sha256: Mapped[str | None] = mapped_column(String(64))


class CorpusRow(Table):
    """One uploaded text, named by the digest of its bytes."""

    __tablename__ = "corpora"
    __table_args__ = (
        CheckConstraint("length(file_id) = 64", name="digest"),
        CheckConstraint("bytes >= 0 AND lines >= 0", name="counts"),
        Index(None, "created_at", "file_id"),
    )

    file_id: Mapped[str] = mapped_column(String(64), primary_key=True)  # sha256, hex
    bytes: Mapped[int]
    lines: Mapped[int]
    created_at: Mapped[float]


class IdempotencyRow(Table):
    """What the first request with this key created."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    endpoint: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    created_id: Mapped[str] = mapped_column(String(_NAME))
    created_at: Mapped[float]
