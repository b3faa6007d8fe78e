"""What a run's curve comes to at its newest checkpoint, so that a missing end is found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("loss_chain", sa.String(length=64), nullable=True))
    op.add_column("runs", sa.Column("loss_chain_step", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "loss_chain_step")
    op.drop_column("runs", "loss_chain")
