"""The database's tables. A change here needs a migration under ``service/migrations``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

metadata = MetaData()
NUMBER = Integer().with_variant(BigInteger, "postgresql")
"""Of rows: SQLite's integers have 64 bits anyhow, and a key has to be called INTEGER there to number rows."""

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
    Column("id", NUMBER, primary_key=True, autoincrement=True),  # the order in which instances were first seen
    Column("sop_instance_uid", String(64), nullable=False),
    Column("image_sha256", String(64), nullable=False, index=True),
    Column("first_seen_at", DateTime(timezone=True), nullable=False),
    Column("patient", String(64)),  # keyed pseudonyms: of PatientID and issuer, and of PatientID alone; NULL: not stated
    Column("patient_number", String(64), index=True),
    UniqueConstraint("sop_instance_uid", "image_sha256"),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("result_id", String(64), ForeignKey("results.id"), nullable=False, index=True),
    Column("sop_instance_uid", String(64), nullable=False),  # empty for pictures without a header
    Column("triage_sha256", String(64), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, index=True),
    Column("site", String(64), nullable=False, server_default=""),  # a configured name, or empty
    Column("scored_again", Boolean, nullable=False, server_default=false()),  # for an item of the worklist, not for a scan
    Column("station", String(16), nullable=False, server_default=""),  # a configured one of the site, or empty
    UniqueConstraint("result_id", "sop_instance_uid", "triage_sha256"),
)

pacs_positions = Table(
    "pacs_positions",
    metadata,
    Column("id", Integer, primary_key=True),  # 1: a site watches one archive
    Column("sequence", NUMBER, nullable=False),  # Orthanc's sequence number; of other archives the day, YYYYMMDD
    Column("anchor", String(64), nullable=False),  # what Orthanc's log holds at that number, to tell one log from another
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

pacs_instances = Table(
    "pacs_instances",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("reference", String(64), nullable=False, unique=True),  # Orthanc's identifier; of other archives the SOP Instance UID
    Column("study_uid", String(64), nullable=False),
    Column("series_uid", String(64), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False),  # empty, as the two before, until they are known
    Column("state", String(16), nullable=False),  # service.arrivals.STATES
    Column("code", String(32), nullable=False),  # why it was skipped, failed, or waits; else empty
    Column("attempts", Integer, nullable=False),
    Column("due_at", Float, nullable=False),  # seconds since 1970
    Column("result_id", String(64), ForeignKey("results.id")),
    Column("seen_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Index("ix_pacs_instances_state_due_at", "state", "due_at"),
)

pacs_objects = Table(
    "pacs_objects",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("instance_id", NUMBER, ForeignKey("pacs_instances.id"), nullable=False, index=True),
    Column("result_id", String(64), ForeignKey("results.id"), nullable=False),
    Column("modality", String(16), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    Column("stored_at", DateTime(timezone=True), nullable=False),
)

kept_images = Table(
    "kept_images",
    metadata,
    Column("image_sha256", String(64), primary_key=True),  # the PNG's name too
    Column("rows", Integer, nullable=False),
    Column("columns", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("facts", JSON, nullable=False),  # what judging and labelling need of the header: never who the patient is
    Column("kept_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False, index=True),
    Column("removed_at", DateTime(timezone=True)),  # the pixels are gone; the row stays for what refers to it
    Index("ix_kept_images_removed_at_bytes", "removed_at", "bytes"),  # what is kept is summed for every new item
)

items = Table(
    "items",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("image_sha256", String(64), ForeignKey("kept_images.image_sha256"), nullable=False),
    Column("model_name", String(64), nullable=False),
    Column("result_id", String(64), ForeignKey("results.id"), nullable=False),
    Column("model_sha256", String(64), ForeignKey("models.sha256"), nullable=False),  # that of result_id
    Column("origin", String(16), nullable=False),  # doubt, random
    Column("site", String(64), nullable=False),  # a configured name, or empty
    Column("patient", String(64), nullable=False),  # a keyed pseudonym
    Column("state", String(16), nullable=False),  # service.items.STATES
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("image_sha256", "model_name"),
    Index("ix_items_model_name_state", "model_name", "state"),
)

leases = Table(
    "leases",
    metadata,
    Column("item_id", NUMBER, ForeignKey("items.id"), primary_key=True),
    Column("reader", String(64), primary_key=True),
    Column("lease_id", String(64), nullable=False, unique=True),
    Column("until", Float, nullable=False),  # seconds since 1970
)

skips = Table(
    "skips",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("item_id", NUMBER, ForeignKey("items.id"), nullable=False, index=True),
    Column("reader", String(64), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

labels = Table(
    "labels",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("label_id", String(64), nullable=False, unique=True),
    Column("item_id", NUMBER, ForeignKey("items.id"), index=True),  # none for a label of a result that was not flagged
    Column("result_id", String(64), ForeignKey("results.id"), nullable=False),  # what the reader was shown
    Column("image_sha256", String(64), nullable=False, index=True),
    Column("model_sha256", String(64), nullable=False),
    Column("reader", String(64), nullable=False),
    Column("standing", String(16), nullable=False),  # reader, adjudicator
    Column("kind", String(16), nullable=False),  # classes, annotation
    Column("document", JSON, nullable=False),
    Column("model_was_right", Boolean, nullable=False),  # the reader confirmed what was shown
    Column("source", String(16), nullable=False),  # page, api, import, label-studio
    Column("replaces", String(64), ForeignKey("labels.label_id")),
    Column("seconds", Float),  # what the reader spent on it, where the caller says so
    Column("created_at", DateTime(timezone=True), nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),  # the last row of a name and role is in force
    Column("model_name", String(64), nullable=False, index=True),
    Column("model_sha256", String(64), nullable=False),  # of the copy under state/packages; empty: none (a candidate withdrawn)
    Column("role", String(16), nullable=False),  # current, candidate
    Column("actor", String(64), nullable=False),
    Column("reason", String(512), nullable=False),
    Column("report", JSON),  # the comparison that allowed it; of a rollback, the number of the row that it takes back
    Column("created_at", DateTime(timezone=True), nullable=False),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("result_id", String(64), ForeignKey("results.id"), primary_key=True),
    Column("candidate_result_id", String(64), ForeignKey("results.id"), primary_key=True),
    Column("model_name", String(64), nullable=False, index=True),
    Column("site", String(64), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("candidate_verdict", String(16), nullable=False),
    Column("same_findings", Boolean, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id_sha256", String(64), primary_key=True),  # of the cookie
    Column("token_sha256", String(64), nullable=False),  # of the token it was opened with
    Column("expires_at", Float, nullable=False),  # seconds since 1970
)

site_keys = Table(
    "site_keys",
    metadata,
    Column("purpose", String(32), primary_key=True),  # pseudonyms
    Column("fingerprint", String(64), nullable=False),  # of the secret, keyed by itself: it says nothing about it
)

audit = Table(
    "audit",
    metadata,
    Column("id", NUMBER, primary_key=True, autoincrement=True),
    Column("at", DateTime(timezone=True), nullable=False, index=True),
    Column("actor", String(64), nullable=False),  # the token's or the person's name, or the account that ran a command
    Column("role", String(16), nullable=False),  # service.access.ROLES, or service.audit.COMMAND
    Column("action", String(32), nullable=False),  # service.audit.ACTIONS
    Column("subject", String(64), nullable=False, index=True),  # a digest or pseudonym; empty: nothing in particular
    Column("number", Integer, nullable=False),  # how many things it concerned
)
"""Triggers refuse to change or remove a row."""


def _health(name: str, *more: Column[Any]) -> Table:
    """Return the table of what scans look like: counted by site and model, and by what else is a key."""
    return Table(
        name,
        metadata,
        Column("site", String(64), primary_key=True),  # a configured name, or empty
        Column("model_sha256", String(64), ForeignKey("models.sha256"), primary_key=True),
        *more,
        Column("loss_counts", JSON, nullable=False),  # of percentiles, by service.telemetry.SITE_PERCENTILES
        Column("domain_counts", JSON, nullable=False),
        Column("loss_sum", Float, nullable=False),
        Column("domain_sum", Float, nullable=False),
        Column("verdicts", JSON, nullable=False),  # verdict -> number
        Column("drift_seen", Integer, nullable=False),  # models.drift.Drift, here and below
        Column("drift_loss_counts", LargeBinary, nullable=False),  # int32, little-endian
        Column("drift_domain_counts", LargeBinary, nullable=False),
        Column("drift_wealth", JSON, nullable=False),
        Column("drift_alarm_at", Integer),
        Column("drift_began_at", DateTime(timezone=True), nullable=False),
    )


# The largest number of all rows is how far was counted
site_health = _health("site_health", Column("last_verdict_id", NUMBER, nullable=False))
station_health = _health("station_health", Column("station", String(16), primary_key=True))
