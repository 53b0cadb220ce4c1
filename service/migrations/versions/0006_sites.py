"""Each verdict names the site that its image came from, and whether a scan or the worklist asked for it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("site", sa.String(64), nullable=False, server_default=""))
    op.add_column("verdicts", sa.Column("scored_again", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_verdicts_created_at", "verdicts", ["created_at"])
