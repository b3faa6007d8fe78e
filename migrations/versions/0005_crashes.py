"""How far a run had come when an attempt failed, so that this can be forgiven further on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("setback_step", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "setback_step")
