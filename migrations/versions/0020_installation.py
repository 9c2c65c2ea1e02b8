"""Which blob store and which signing key belong to the database."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("store_id", sa.String()),
        sa.Column("target_store_id", sa.String()),
        sa.Column("previous_store_id", sa.String()),
        sa.Column("previous_state", sa.String()),
        sa.Column("moved_at", sa.DateTime(timezone=True)),
        sa.Column("is_store_marked", sa.Boolean(), nullable=False),
        sa.Column("signing_key", sa.String()),
        sa.CheckConstraint("id = 1", name=op.f("ck_installation_is_one_row")),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
    )
    installation = sa.table("installation", sa.column("id"), sa.column("is_store_marked"))
    op.execute(installation.insert().values(id=1, is_store_marked=sa.false()))
