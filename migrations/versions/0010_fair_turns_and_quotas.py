"""Turns between projects in the queue, limits and usage of projects, and an audit trail."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_NEW_COLUMNS = {
    "max_stored_bytes": sa.BigInteger(),
    "max_queued_jobs": sa.Integer(),
    "max_running_jobs": sa.Integer(),
    "max_processor_hours": sa.Double(),
    "max_duration_s": sa.Integer(),
    "max_requests_per_minute": sa.Integer(),
    "file_retention_days": sa.Integer(),
    "job_retention_days": sa.Integer(),
    "event_retention_days": sa.Integer(),
}


def upgrade() -> None:
    turn = sa.Column("last_turn", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("projects", turn)
    op.create_index("ix_projects_last_turn", "projects", ["last_turn"])
    for name, kind in _NEW_COLUMNS.items():
        op.add_column("projects", sa.Column(name, kind))
    threads = sa.Column("threads", sa.Integer(), nullable=False, server_default="1")
    op.add_column("attempts", threads)
    op.drop_index("ix_jobs_queue", "jobs")
    queue = ["status", "project_id", sa.text("priority DESC"), "id"]
    op.create_index("ix_jobs_queue", "jobs", queue)
    parts = ("upload_parts", ["project_id", "bytes"])
    op.create_index("ix_upload_parts_project_id_bytes", *parts)
    op.create_table(
        "project_usage",
        sa.Column("month", sa.String(), nullable=False),
        sa.Column("processor_s", sa.Double(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_project_usage_project_id"
        ),
        sa.PrimaryKeyConstraint("project_id", "month", name="pk_project_usage"),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String()),
        sa.Column("request_id", sa.String()),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_audit_events_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_audit_events"),
    )
    op.create_index("ix_audit_events_project_id_id", "audit_events", ["project_id", "id"])
