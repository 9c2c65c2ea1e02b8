"""Prompts of jobs, which their reports answer, and whether those of checkpoints do."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("eval_prompts", sa.JSON()))
    name, default = "eval_prompts_at_checkpoints", sa.false()
    op.add_column("jobs", sa.Column(name, sa.Boolean(), nullable=False, server_default=default))
