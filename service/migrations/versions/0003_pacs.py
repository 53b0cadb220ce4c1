"""The archive: where the watch is, what it saw and what became of it, and the objects it stored there."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NUMBER = sa.Integer().with_variant(sa.BigInteger, "postgresql")


def upgrade() -> None:
    op.create_table(
        "pacs_positions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sequence", NUMBER, nullable=False),
        sa.Column("anchor", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "pacs_instances",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("reference", sa.String(64), nullable=False, unique=True),
        sa.Column("study_uid", sa.String(64), nullable=False),
        sa.Column("series_uid", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("result_id", sa.String(64), sa.ForeignKey("results.id")),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_pacs_instances_state_due_at", "pacs_instances", ["state", "due_at"])
    op.create_table(
        "pacs_objects",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("instance_id", NUMBER, sa.ForeignKey("pacs_instances.id"), nullable=False, index=True),
        sa.Column("result_id", sa.String(64), sa.ForeignKey("results.id"), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=False),
    )
