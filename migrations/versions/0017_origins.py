"""The adapter that a job continues, and the archive that an adapter was imported from."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("parent", sa.JSON()))
    op.add_column("jobs", sa.Column("parent_checkpoint_id", sa.String()))
    op.add_column("jobs", sa.Column("imported", sa.JSON()))
    op.create_index("ix_jobs_parent_checkpoint_id", "jobs", ["parent_checkpoint_id"])
