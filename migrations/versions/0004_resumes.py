"""Runs that are paused and resumed, and curves that can be checked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a default, for processes of the version before may still write rows.
    op.add_column(
        "jobs", sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("jobs", sa.Column("cause", sa.Text(), nullable=True))
    op.add_column("metrics", sa.Column("chain", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("metrics", "chain")
    op.drop_column("jobs", "cause")
    op.drop_column("jobs", "paused")
