"""The expert's loop: kept pixels, worklist items and their leases, labels, packages and what a candidate would have said."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NUMBER = sa.Integer().with_variant(sa.BigInteger, "postgresql")


def upgrade() -> None:
    op.create_table(
        "kept_images",
        sa.Column("image_sha256", sa.String(64), primary_key=True),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("columns", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("kept_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("removed_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "items",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("image_sha256", sa.String(64), sa.ForeignKey("kept_images.image_sha256"), nullable=False),
        sa.Column("model_name", sa.String(64), nullable=False),
        sa.Column("result_id", sa.String(64), sa.ForeignKey("results.id"), nullable=False),
        sa.Column("model_sha256", sa.String(64), sa.ForeignKey("models.sha256"), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("patient", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("image_sha256", "model_name"),
    )
    op.create_index("ix_items_model_name_state", "items", ["model_name", "state"])
    op.create_table(
        "leases",
        sa.Column("item_id", NUMBER, sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("reader", sa.String(64), primary_key=True),
        sa.Column("lease_id", sa.String(64), nullable=False, unique=True),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "skips",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("item_id", NUMBER, sa.ForeignKey("items.id"), nullable=False, index=True),
        sa.Column("reader", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "labels",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("label_id", sa.String(64), nullable=False, unique=True),
        sa.Column("item_id", NUMBER, sa.ForeignKey("items.id"), index=True),
        sa.Column("result_id", sa.String(64), sa.ForeignKey("results.id"), nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False, index=True),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("reader", sa.String(64), nullable=False),
        sa.Column("standing", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("model_was_right", sa.Boolean, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("replaces", sa.String(64), sa.ForeignKey("labels.label_id")),
        sa.Column("seconds", sa.Float),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "promotions",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("model_name", sa.String(64), nullable=False, index=True),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(512), nullable=False),
        sa.Column("report", sa.JSON),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "comparisons",
        sa.Column("result_id", sa.String(64), sa.ForeignKey("results.id"), primary_key=True),
        sa.Column("candidate_result_id", sa.String(64), sa.ForeignKey("results.id"), primary_key=True),
        sa.Column("model_name", sa.String(64), nullable=False, index=True),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("candidate_verdict", sa.String(16), nullable=False),
        sa.Column("same_findings", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
