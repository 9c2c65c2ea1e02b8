"""An index to find a model's checkpoints by its name, and one to list files without adapters."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_fine_tuned_model", "jobs", ["fine_tuned_model"])
    is_listed = sa.text("checkpoint_id IS NULL")
    op.create_index(
        "ix_files_listed",
        "files",
        ["project_id", "id"],
        sqlite_where=is_listed,
        postgresql_where=is_listed,
    )
