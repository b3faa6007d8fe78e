"""Where a finished model lies in the data bank."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("artifact_file_id", sa.String(length=128), nullable=True))
    op.add_column("runs", sa.Column("archive_sha256", sa.String(length=64), nullable=True))
    op.add_column("runs", sa.Column("archive_bytes", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("uploaded_at", sa.Double(), nullable=True))


def downgrade() -> None:
    for column in ("uploaded_at", "archive_bytes", "archive_sha256", "artifact_file_id"):
        op.drop_column("runs", column)
