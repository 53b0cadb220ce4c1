"""Segmentations: objects, tiles and quantities of a result."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("results", sa.Column("segmentation", sa.LargeBinary))
