"""The digest of a finished tokenizer's manifest, as that of a model is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tokenizers", sa.Column("artifact_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("tokenizers", "artifact_sha256")
