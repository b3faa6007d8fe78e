"""How long a step took, and how much of its processor it used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("metrics", sa.Column("step_ms", sa.Double(), nullable=True))
    op.add_column("metrics", sa.Column("mfu", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("metrics", "mfu")
    op.drop_column("metrics", "step_ms")
