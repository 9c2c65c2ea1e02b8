"""Indexes for what a list is filtered by, and for the rows of one job among very many.

SQLite has no statistics of its tables. Of two indexes it takes the one with more of the columns
that are compared, so an index of the rows of a job names their project too.
"""

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_REPLACED = {
    "files": {
        "job_id": ["job_id", "project_id", "id"],
        "checkpoint_id": ["checkpoint_id", "project_id"],
    },
    "tuned_models": {"job_id": ["job_id", "project_id"]},
    "tasks": {"job_id": ["job_id", "project_id"]},
    "checkpoints": {"project_id": ["project_id", "job_id", "id"]},
    "jobs": {
        "parent_checkpoint_id": ["parent_checkpoint_id", "project_id"],
        "training_file_id": ["training_file_id", "project_id"],
        "validation_file_id": ["validation_file_id", "project_id"],
    },
}
"""Columns of the new index by table, and by column of the index that it replaces."""
_NEW = (
    ("jobs", ["project_id", "status", "id"]),
    ("jobs", ["project_id", "base_model", "status", "id"]),
    ("files", ["project_id", "purpose", "id"]),
)


def upgrade() -> None:
    for table, columns in _NEW:
        op.create_index(_name(table, columns), table, columns)
    for table, indexes in _REPLACED.items():
        for old, columns in indexes.items():
            op.create_index(_name(table, columns), table, columns)
            op.drop_index(_name(table, [old]), table)


def _name(table: str, columns: list[str]) -> str:
    return "_".join(["ix", table, *columns])
