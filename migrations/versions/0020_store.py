"""The row of the installation: which stores it uses, and which key signs its manifests."""

import sqlalchemy as sa
from alembic import op

from app.core.db.base import UtcDateTime

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("store_id", sa.String()),
        sa.Column("signing_key", sa.String()),
        sa.Column("target_store_id", sa.String()),
        sa.Column("previous_store_id", sa.String()),
        sa.Column("previous_state", sa.String()),
        sa.Column("moved_at", UtcDateTime()),
        sa.CheckConstraint("id = 1", name="only_one"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(table, [{"id": 1}])
