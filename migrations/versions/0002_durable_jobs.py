"""Durable jobs: pause, priority, saved states, the process of an attempt, repeated requests."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATUSES = "'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    _change_jobs()
    op.create_index("ix_jobs_queue", "jobs", ["status", sa.text("priority DESC"), "id"])
    op.add_column("attempts", sa.Column("host", sa.String()))
    op.add_column("attempts", sa.Column("pid", sa.Integer()))
    op.add_column("attempts", sa.Column("process_started", sa.BigInteger()))
    op.create_table(
        "saved_states",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_saved_states_job_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_saved_states_project_id"),
        sa.PrimaryKeyConstraint("job_id", "step", name="pk_saved_states"),
    )
    op.create_table(
        "submissions",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("key", sa.String()),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_submissions_job_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_submissions_project_id"),
        sa.PrimaryKeyConstraint("job_id", name="pk_submissions"),
        sa.UniqueConstraint(
            "project_id", "route", "key", name="uq_submissions_project_id_route_key"
        ),
    )
    op.create_index(
        "ix_submissions_project_id_route_fingerprint_created_at",
        "submissions",
        ["project_id", "route", "fingerprint", "created_at"],
    )


def _change_jobs() -> None:
    """New columns and one more status. SQLite can only do that by building the table anew."""
    op.drop_index("ix_jobs_status_id", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_jobstatus"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_jobstatus"), sa.text(f"status IN ({_STATUSES})"))
        jobs.add_column(sa.Column("pause_requested_at", sa.DateTime(timezone=True)))
        for counter in ("priority", "crashes", "interruptions"):
            jobs.add_column(sa.Column(counter, sa.Integer(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("rerun_of", sa.String()))
        jobs.add_column(sa.Column("base_model_sha256", sa.String()))
