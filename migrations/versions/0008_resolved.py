"""What a run's worker made of what the request left to it; the digest of a tokenizer's manifest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("resolved", sa.Text(), nullable=True))
    # as that of a model is kept
    op.add_column("tokenizers", sa.Column("artifact_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("tokenizers", "artifact_sha256")
    op.drop_column("runs", "resolved")
