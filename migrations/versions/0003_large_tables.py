"""Large tables: an index for every query that would otherwise read a whole table."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, column in (
        ("files", "expires_at"),
        ("jobs", "result_file_id"),
        ("submissions", "created_at"),
        ("tuned_models", "checkpoint_id"),
        ("tuned_models", "job_id"),
    ):
        op.create_index(f"ix_{table}_{column}", table, [column])
    op.create_index("ix_job_metadata_key_value_job_id", "job_metadata", ["key", "value", "job_id"])
    op.drop_index("ix_job_metadata_key_value", "job_metadata")
