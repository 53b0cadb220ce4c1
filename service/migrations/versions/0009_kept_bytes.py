"""How many bytes of pixels are kept is summed from an index, not from every row with its facts."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_kept_images_removed_at_bytes", "kept_images", ["removed_at", "bytes"])
