"""Sweeps, and which checks of data their jobs share."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("points", sa.JSON(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_sweeps_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
    )
    op.create_index("ix_sweeps_project_id_id", "sweeps", ["project_id", "id"])
    op.add_column("jobs", sa.Column("sweep_id", sa.String()))
    op.create_index("ix_jobs_sweep_id", "jobs", ["sweep_id"])
    op.add_column("data_checks", sa.Column("shared", sa.String()))
    shared = sa.text("shared IS NOT NULL")
    op.create_index(
        "ix_data_checks_shared",
        "data_checks",
        ["shared", "job_id"],
        sqlite_where=shared,
        postgresql_where=shared,
    )
