"""What workers make of checkpoints beside training, exports and reports: a table of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("variant", sa.String(), nullable=False),
        sa.Column("request", sa.JSON()),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String()),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True)),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("releases", sa.Integer(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("result", sa.JSON()),
        sa.Column("files", sa.JSON()),
        sa.Column("error", sa.JSON()),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed')", name=op.f("ck_tasks_status")
        ),
        sa.CheckConstraint(
            "(worker_id IS NOT NULL) = (status = 'running')", name=op.f("ck_tasks_held")
        ),
        sa.CheckConstraint(
            "(lease_expires_at IS NOT NULL) = (status = 'running')", name=op.f("ck_tasks_leased")
        ),
        sa.CheckConstraint(
            "expires_at IS NULL OR status IN ('succeeded', 'failed')",
            name=op.f("ck_tasks_expiry_of_ended"),
        ),
        sa.CheckConstraint(
            "(error IS NOT NULL) = (status = 'failed')", name=op.f("ck_tasks_error")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_tasks_job_id"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name="fk_tasks_checkpoint_id"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_tasks_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint(
            "checkpoint_id", "kind", "variant", name="uq_tasks_checkpoint_id_kind_variant"
        ),
    )
    op.create_index("ix_tasks_job_id", "tasks", ["job_id"])
    op.create_index("ix_tasks_status_id", "tasks", ["status", "id"])
    op.create_index("ix_tasks_project_id_started_at", "tasks", ["project_id", "started_at"])
    op.create_index("ix_tasks_expires_at", "tasks", ["expires_at"])
    held = sa.text("worker_id IS NOT NULL")
    op.create_index(
        "ix_tasks_held", "tasks", ["worker_id"], sqlite_where=held, postgresql_where=held
    )
