"""Causes and steps of attempts, losses in columns, silent workers, an index to filter jobs by."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_STEPS = sa.table(
    "steps",
    sa.column("metrics", sa.JSON()),
    sa.column("train_loss", sa.Double()),
    sa.column("valid_loss", sa.Double()),
)


def upgrade() -> None:
    op.add_column("attempts", sa.Column("from_step", sa.Integer()))
    op.add_column("attempts", sa.Column("to_step", sa.Integer()))
    op.add_column("attempts", sa.Column("cause", sa.String()))
    losses = ("train_loss", "valid_loss")
    for name in losses:
        op.add_column("steps", sa.Column(name, sa.Double()))
    values = {name: _STEPS.c.metrics[name].as_float() for name in losses}
    op.execute(sa.update(_STEPS).values(values))
    op.add_column("workers", sa.Column("silent_since", sa.DateTime(timezone=True)))
    op.drop_index("ix_jobs_project_id_id", "jobs")
    listed = ["project_id", "id", "status", "base_model", "fine_tuned_model", "suffix"]
    op.create_index("ix_jobs_listed", "jobs", listed)
