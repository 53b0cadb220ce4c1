"""Who read or changed what, in rows that stay; and whose each instance is, as keyed pseudonyms."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NUMBER = sa.Integer().with_variant(sa.BigInteger, "postgresql")

_REFUSE = "BEGIN SELECT RAISE(ABORT, 'audit rows are only ever added'); END"
_RAISE = "BEGIN RAISE EXCEPTION 'audit rows are only ever added'; END"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False, index=True),
        sa.Column("number", sa.Integer, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $${_RAISE}$$")
        change = "BEFORE UPDATE OR DELETE OR TRUNCATE ON audit FOR EACH STATEMENT"
        op.execute(f"CREATE TRIGGER audit_no_change {change} EXECUTE FUNCTION audit_refuse()")
    else:
        op.execute(f"CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit {_REFUSE}")
        op.execute(f"CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit {_REFUSE}")
        # INSERT OR REPLACE deletes without asking the trigger above
        known = "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)"
        op.execute(f"CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit {known} {_REFUSE}")
    op.add_column("instances", sa.Column("patient", sa.String(64)))
    op.add_column("instances", sa.Column("patient_number", sa.String(64)))
    op.create_index("ix_instances_patient_number", "instances", ["patient_number"])
    op.create_index("ix_instances_image_sha256", "instances", ["image_sha256"])
