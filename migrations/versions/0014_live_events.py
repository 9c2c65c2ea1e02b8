"""Numbers of events within their job, and when the row of a job was last written."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_NUMBER_EVENTS = """
    UPDATE events SET number = numbered.number
    FROM (
        SELECT id, row_number() OVER (PARTITION BY job_id ORDER BY id) AS number FROM events
    ) AS numbered
    WHERE events.id = numbered.id
"""
_COUNT_EVENTS = """
    UPDATE jobs SET
        event_count = (SELECT count(*) FROM events WHERE events.job_id = jobs.id),
        updated_at = coalesce(finished_at, created_at)
"""
_LONG_AGO = "1970-01-01 00:00:00.000000"
"""A new column needs a default. No row keeps it."""


def upgrade() -> None:
    count = sa.Column("event_count", sa.Integer(), nullable=False, server_default="0")
    op.add_column("jobs", count)
    updated_at = sa.DateTime(timezone=True)
    column = sa.Column("updated_at", updated_at, nullable=False, server_default=_LONG_AGO)
    op.add_column("jobs", column)
    number = sa.Column("number", sa.Integer(), nullable=False, server_default="0")
    op.add_column("events", number)
    op.execute(_NUMBER_EVENTS)
    op.execute(_COUNT_EVENTS)
    op.create_index("ix_events_job_id_number", "events", ["job_id", "number"], unique=True)
    op.create_index("ix_jobs_project_id_updated_at", "jobs", ["project_id", "updated_at"])
