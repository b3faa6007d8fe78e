"""When and where a job lost its last worker, so that old losses can be forgiven."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("crashed_at", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("crash_step", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "crash_step")
    op.drop_column("jobs", "crashed_at")
