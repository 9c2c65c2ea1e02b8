"""Memory of workers, and memory that a job needs and may wait for."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger()))
    op.add_column("jobs", sa.Column("needed_memory_bytes", sa.BigInteger()))
    op.add_column("jobs", sa.Column("not_before", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("waiting_reason", sa.String()))
