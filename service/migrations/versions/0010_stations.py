"""Each verdict names the configured station that its image came from; what the scans of each station look like."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("station", sa.String(16), nullable=False, server_default=""))
    op.create_table(
        "station_health",
        sa.Column("site", sa.String(64), primary_key=True),
        sa.Column("model_sha256", sa.String(64), sa.ForeignKey("models.sha256"), primary_key=True),
        sa.Column("station", sa.String(16), primary_key=True),
        sa.Column("loss_counts", sa.JSON, nullable=False),
        sa.Column("domain_counts", sa.JSON, nullable=False),
        sa.Column("loss_sum", sa.Float, nullable=False),
        sa.Column("domain_sum", sa.Float, nullable=False),
        sa.Column("verdicts", sa.JSON, nullable=False),
        sa.Column("drift_seen", sa.Integer, nullable=False),
        sa.Column("drift_loss_counts", sa.LargeBinary, nullable=False),
        sa.Column("drift_domain_counts", sa.LargeBinary, nullable=False),
        sa.Column("drift_wealth", sa.JSON, nullable=False),
        sa.Column("drift_alarm_at", sa.Integer),
        sa.Column("drift_began_at", sa.DateTime(timezone=True), nullable=False),
    )
