"""Each verdict names the site that its image came from; verdicts are found by their day."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("site", sa.String(64), nullable=False, server_default=""))
    op.create_index("ix_verdicts_created_at", "verdicts", ["created_at"])
