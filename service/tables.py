"""The database's tables. A change here needs a migration under ``service/migrations``."""

from __future__ import annotations

from sqlalchemy import JSON, Column, DateTime, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint

metadata = MetaData()

models = Table(
    "models",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("version", String(32), nullable=False),
    Column("card", JSON, nullable=False),
    Column("first_loaded_at", DateTime(timezone=True), nullable=False),
)

results = Table(
    "results",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("image_sha256", String(64), nullable=False, index=True),
    Column("model_sha256", String(64), ForeignKey("models.sha256"), nullable=False),
    Column("provider", String(64), nullable=False),
    Column("media_type", String(32), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("columns", Integer, nullable=False),
    Column("probabilities", JSON, nullable=False),
    Column("loss_score", Float, nullable=False),
    Column("predicted_loss", Float, nullable=False),
    Column("loss_percentile", Float, nullable=False),
    Column("domain_distance", Float, nullable=False),
    Column("domain_percentile", Float, nullable=False),
    Column("entropy", Float, nullable=False),
    Column("features", LargeBinary, nullable=False),  # float32, little-endian, shape (D,)
    Column("notes", JSON, nullable=False),  # reason codes that follow from the header alone
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("segmentation", LargeBinary),  # of a segmenter: service.segmentation.pack; NULL of a classifier
)

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),  # the order in which instances were first seen
    Column("sop_instance_uid", String(64), nullable=False),
    Column("image_sha256", String(64), nullable=False),
    Column("first_seen_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("sop_instance_uid", "image_sha256"),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("result_id", String(64), ForeignKey("results.id"), nullable=False, index=True),
    Column("sop_instance_uid", String(64), nullable=False),  # empty for pictures without a header
    Column("triage_sha256", String(64), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("result_id", "sop_instance_uid", "triage_sha256"),
)
