"""Jobs, and what they make and read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "corpora",
        sa.Column("file_id", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint("bytes >= 0 AND lines >= 0", name=op.f("ck_corpora_counts")),
        sa.CheckConstraint("length(file_id) = 64", name=op.f("ck_corpora_digest")),
        sa.PrimaryKeyConstraint("file_id", name=op.f("pk_corpora")),
    )
    op.create_index("ix_corpora_created_at_file_id", "corpora", ["created_at", "file_id"])

    op.create_table(
        "idempotency_keys",
        sa.Column("endpoint", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_id", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])

    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("heartbeat_at", sa.Double(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("dispatched_at", sa.Double(), nullable=True),
        sa.Column("dispatches", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("completed_at", sa.Double(), nullable=True),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("corpus_file_id", sa.String(length=64), nullable=True),
        sa.Column("tokenizer_id", sa.String(length=128), nullable=True),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.CheckConstraint(
            "(status = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)",
            name=op.f("ck_jobs_running_is_leased"),
        ),
        sa.CheckConstraint(
            "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)",
            name=op.f("ck_jobs_final_has_end"),
        ),
        sa.CheckConstraint(
            "kind IN ('train', 'tokenizer', 'generate')", name=op.f("ck_jobs_kind_known")
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_jobs_status_known"),
        ),
        sa.CheckConstraint(
            "attempt >= 0 AND crashes >= 0 AND retries >= 0", name=op.f("ck_jobs_counts")
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name=op.f("ck_jobs_priority_range")),
        sa.ForeignKeyConstraint(["run_id"], ["jobs.id"], name=op.f("fk_jobs_run_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_corpus_file_id", "jobs", ["corpus_file_id"])
    op.create_index("ix_jobs_kind_created_at_id", "jobs", ["kind", "created_at", "id"])
    op.create_index(
        "ix_jobs_kind_status_created_at_id", "jobs", ["kind", "status", "created_at", "id"]
    )
    op.create_index(
        "ix_jobs_kind_user_id_created_at_id", "jobs", ["kind", "user_id", "created_at", "id"]
    )
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["queue", "priority", "created_at"],
        sqlite_where=sa.text("status = 'queued'"),
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index("ix_jobs_run_id", "jobs", ["run_id"])
    op.create_index(
        "ix_jobs_running",
        "jobs",
        ["lease_until"],
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index("ix_jobs_tokenizer_id", "jobs", ["tokenizer_id"])

    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model_family", sa.String(length=64), nullable=False),
        sa.Column("model_size", sa.String(length=64), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), nullable=True),
        sa.Column("checkpoint_step", sa.BigInteger(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=True),
        sa.Column("val_loss", sa.Double(), nullable=True),
        sa.Column("tokens_per_sec", sa.Double(), nullable=True),
        sa.Column("eta_sec", sa.Double(), nullable=True),
        sa.Column("artifact_storage", sa.String(length=16), nullable=True),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=True),
        sa.CheckConstraint("progress BETWEEN 0 AND 100", name=op.f("ck_runs_progress_range")),
        sa.CheckConstraint(
            "step >= 0 AND total_steps >= 0 AND epoch >= 0", name=op.f("ck_runs_counts")
        ),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], name=op.f("fk_runs_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index("ix_runs_model_family", "runs", ["model_family"])

    op.create_table(
        "tokenizers",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_tokenizers_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokenizers")),
        sa.UniqueConstraint("job_id", name=op.f("uq_tokenizers_job_id")),
    )
    op.create_table(
        "metrics",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=True),
        sa.Column("val_loss", sa.Double(), nullable=True),
        sa.Column("learning_rate", sa.Double(), nullable=True),
        sa.Column("grad_norm", sa.Double(), nullable=True),
        sa.Column("tokens_per_sec", sa.Double(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.CheckConstraint("step >= 0", name=op.f("ck_metrics_step_range")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metrics_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "step", name=op.f("pk_metrics")),
    )
    op.create_table(
        "run_tags",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_tags_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "tag", name=op.f("pk_run_tags")),
    )
    op.create_index("ix_run_tags_tag_run_id", "run_tags", ["tag", "run_id"])


def downgrade() -> None:
    for table in (
        "run_tags",
        "metrics",
        "tokenizers",
        "runs",
        "jobs",
        "idempotency_keys",
        "corpora",
    ):
        op.drop_table(table)
