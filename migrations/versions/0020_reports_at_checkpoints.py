"""Jobs whose prompts are answered at each checkpoint."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    name, default = "eval_prompts_at_checkpoints", sa.false()
    column = sa.Column(name, sa.Boolean(), nullable=False, server_default=default)
    op.add_column("jobs", column)
