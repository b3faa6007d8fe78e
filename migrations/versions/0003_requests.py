"""Requests to evaluate, score and chat."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BEFORE = "kind IN ('train', 'tokenizer', 'generate')"
_AFTER = "kind IN ('train', 'tokenizer', 'generate', 'score', 'evaluate', 'chat')"
_LIVE_TURN = sa.text("kind = 'chat' AND status IN ('queued', 'running')")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("topic", sa.String(length=64), nullable=True))
    _replace_check(_BEFORE, _AFTER)
    op.drop_index("ix_jobs_run_id", "jobs")
    op.create_index(
        "ix_jobs_run_id_kind_topic_created_at", "jobs", ["run_id", "kind", "topic", "created_at"]
    )
    op.create_index(
        "uq_jobs_live_turn",
        "jobs",
        ["topic"],
        unique=True,
        sqlite_where=_LIVE_TURN,
        postgresql_where=_LIVE_TURN,
    )


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM jobs WHERE kind IN ('score', 'evaluate', 'chat')"))
    op.drop_index("uq_jobs_live_turn", "jobs")
    op.drop_index("ix_jobs_run_id_kind_topic_created_at", "jobs")
    op.create_index("ix_jobs_run_id", "jobs", ["run_id"])
    _replace_check(_AFTER, _BEFORE)
    op.drop_column("jobs", "topic")


def _replace_check(old: str, new: str) -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        name = op.f("ck_jobs_kind_known")
        op.drop_constraint(name, "jobs")
        op.create_check_constraint(name, "jobs", sa.text(new))
        return
    # SQLite alters a table by copying it, which the foreign keys that lead to this one forbid
    # within a transaction. Rewriting its text is the documented way where no stored byte changes:
    # sqlite.org/lang_altertable.html, section 7.
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    connection.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'jobs'",
        (old, new),
    )
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = RESET")
