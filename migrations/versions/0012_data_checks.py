"""Data of a job is checked before it trains: one more status, and a table of checks."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_STATUSES = "'validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    op.drop_index("ix_jobs_queue", "jobs")
    with op.batch_alter_table("jobs") as jobs:  # SQLite copies the table to change a constraint
        jobs.drop_constraint(op.f("ck_jobs_jobstatus"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_jobstatus"), sa.text(f"status IN ({_STATUSES})"))
    queue = ["status", "project_id", sa.text("priority DESC"), "id"]
    op.create_index("ix_jobs_queue", "jobs", queue)
    op.create_table(
        "data_checks",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String()),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("report", sa.JSON()),
        sa.Column("files", sa.JSON()),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.CheckConstraint(
            "(worker_id IS NOT NULL) = (lease_expires_at IS NOT NULL)",
            name=op.f("ck_data_checks_leased"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_data_checks_job_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_data_checks_project_id"),
        sa.PrimaryKeyConstraint("job_id", name="pk_data_checks"),
    )
    op.create_index(
        "ix_data_checks_project_id_started_at", "data_checks", ["project_id", "started_at"]
    )
    for name, column, where in (
        ("kept", "job_id", sa.text("files IS NOT NULL")),
        ("held", "worker_id", sa.text("worker_id IS NOT NULL")),
    ):
        op.create_index(
            f"ix_data_checks_{name}",
            "data_checks",
            [column],
            sqlite_where=where,
            postgresql_where=where,
        )
