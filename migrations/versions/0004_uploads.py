"""Uploads: files that are sent in parts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("file_expires_after_s", sa.Integer()),
        sa.Column("part_ids", sa.JSON()),
        sa.Column("file_id", sa.String()),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'completed', 'cancelled', 'expired')",
            name=op.f("ck_uploads_status"),
        ),
        sa.CheckConstraint(
            "(file_id IS NOT NULL) = (status = 'completed')",
            name=op.f("ck_uploads_file_of_completed"),
        ),
        sa.CheckConstraint(
            "(part_ids IS NOT NULL) = (status = 'completed')",
            name=op.f("ck_uploads_parts_of_completed"),
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_uploads_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_status_expires_at", "uploads", ["status", "expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("blob_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_parts_upload_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_upload_parts_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_upload_parts"),
        sa.UniqueConstraint("blob_key", name="uq_upload_parts_blob_key"),
        sa.UniqueConstraint("upload_id", "sha256", name="uq_upload_parts_upload_id_sha256"),
    )
