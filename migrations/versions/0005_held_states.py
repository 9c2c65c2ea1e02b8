"""Held states: a job may resume from the saved state of one that has failed or was cancelled."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("resumed_from_step", sa.Integer()))
    op.add_column("jobs", sa.Column("continued_by", sa.String()))
    op.add_column("saved_states", sa.Column("saved_by", sa.String()))
