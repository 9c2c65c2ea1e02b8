"""A mark on projects that are being erased; indexes for what is deleted by project or by age."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_NEW_INDEXES = {
    "events": ["project_id", "created_at"],
    "audit_events": ["created_at"],
    "checkpoints": ["project_id"],
    "tuned_models": ["project_id"],
    "uploads": ["project_id"],
    "webhook_deliveries": ["project_id"],
}


def upgrade() -> None:
    op.add_column("projects", sa.Column("erasing_since", sa.DateTime(timezone=True)))
    for table, columns in _NEW_INDEXES.items():
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)
