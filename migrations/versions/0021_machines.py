"""What workers can do, what queued jobs need of them, and machines that are drained."""

import sqlalchemy as sa
from alembic import op

from app.core.db.base import UtcDateTime

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_QUEUED = sa.text("status = 'queued'")


def upgrade() -> None:
    op.add_column("workers", sa.Column("machine", sa.String()))
    op.add_column("workers", sa.Column("ability", sa.Text()))
    op.add_column("workers", sa.Column("models_in_memory", sa.JSON()))
    op.create_table(
        "drained_machines",
        sa.Column("machine", sa.String(), nullable=False),
        sa.Column("since", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("machine", name=op.f("pk_drained_machines")),
    )
    op.add_column("jobs", sa.Column("plan", sa.JSON()))
    name, default = "allow_inexact_resume", sa.false()
    op.add_column("jobs", sa.Column(name, sa.Boolean(), nullable=False, server_default=default))
    # The needs of a job without a plan, as app/core/abilities/needs.py writes them. Its memory is
    # compared when a worker takes it.
    op.add_column("jobs", sa.Column("needs", sa.String(), nullable=False, server_default=""))
    op.execute("UPDATE jobs SET needs = base_model || ' 0 0 0 - 0'")
    op.create_index(
        "ix_jobs_needs",
        "jobs",
        ["project_id", "needs", sa.text("priority DESC"), "id"],
        sqlite_where=_QUEUED,
        postgresql_where=_QUEUED,
    )
