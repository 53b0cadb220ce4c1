"""What each site's scans look like, and the state of the test whether they drift: sums and counts alone."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NUMBER = sa.Integer().with_variant(sa.BigInteger, "postgresql")


def upgrade() -> None:
    op.create_table(
        "site_health",
        sa.Column("site", sa.String(64), primary_key=True),
        sa.Column("model_sha256", sa.String(64), sa.ForeignKey("models.sha256"), primary_key=True),
        sa.Column("last_verdict_id", NUMBER, nullable=False),
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
