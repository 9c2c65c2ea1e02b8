"""The tables of what workers do beside training: checks of data, and tasks. And of sweeps."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.base import Base, OwnedByProject

_KEPT = text("files IS NOT NULL")
_HELD = text("worker_id IS NOT NULL")
_SHARED = text("shared IS NOT NULL")


class DataCheck(OwnedByProject, Base):
    """The check of one job's data. It is done while the job is `validating_files`."""

    __tablename__ = "data_checks"
    __table_args__ = (
        CheckConstraint("(worker_id IS NOT NULL) = (lease_expires_at IS NOT NULL)", "leased"),
        Index(None, "project_id", "started_at"),
        Index("ix_data_checks_kept", "job_id", sqlite_where=_KEPT, postgresql_where=_KEPT),
        Index("ix_data_checks_held", "worker_id", sqlite_where=_HELD, postgresql_where=_HELD),
        Index(
            "ix_data_checks_shared",
            "shared",
            "job_id",
            sqlite_where=_SHARED,
            postgresql_where=_SHARED,
        ),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    shared: Mapped[str | None]
    """Digest of the sweep and of all that a check depends on. The jobs of a sweep with the same one
    are checked once, and one row of them has the tokens. Null for a job without a sweep."""
    number: Mapped[int] = mapped_column(default=0)
    """Number of the newest try. Older tries can no longer write."""
    worker_id: Mapped[str | None]
    """Worker that checks the data. Null while nobody does."""
    lease_expires_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    """When the newest try began."""
    not_before: Mapped[datetime | None]
    """When a worker may begin it after its base model could not be fetched."""
    finished_at: Mapped[datetime | None]
    crashes: Mapped[int] = mapped_column(default=0)
    """How many tries ended because their process died by itself."""
    report: Mapped[dict[str, Any] | None]
    """A `DataReport`. Null until the check is done."""
    files: Mapped[dict[str, Any] | None]
    """Blob key, bytes and sha256 of each file of tokens, by name. Null once the job has ended."""


class Sweep(OwnedByProject, Base):
    """Jobs that one request made, with different hyperparameters. It is deleted with the last."""

    __tablename__ = "sweeps"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    points: Mapped[dict[str, Any]]
    """By the id of each job, the hyperparameters that vary, by their names on the wire."""


class OfSweep:
    """What a job has because it may be one of a sweep."""

    sweep_id: Mapped[str | None] = mapped_column(index=True)
    """The `Sweep` that made the job. Null for a job that was made alone."""


TaskStatus = Literal["queued", "running", "succeeded", "failed"]


class Task(OwnedByProject, Base):
    """Something that a worker makes of a checkpoint beside training: an export or a report."""

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed')", "status"),
        CheckConstraint("(worker_id IS NOT NULL) = (status = 'running')", "held"),
        CheckConstraint("(lease_expires_at IS NOT NULL) = (status = 'running')", "leased"),
        CheckConstraint(
            "expires_at IS NULL OR status IN ('succeeded', 'failed')", "expiry_of_ended"
        ),
        CheckConstraint("(error IS NOT NULL) = (status = 'failed')", "error"),
        UniqueConstraint("checkpoint_id", "kind", "variant"),
        Index(None, "status", "id"),
        Index(None, "project_id", "started_at"),
        Index(None, "job_id", "project_id"),
        Index("ix_tasks_held", "worker_id", sqlite_where=_HELD, postgresql_where=_HELD),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    kind: Mapped[str]
    """What is made: `export` or `report`."""
    variant: Mapped[str]
    """Which of its kind: the `ExportFormat` of an export. A checkpoint has one report."""
    request: Mapped[dict[str, Any] | None]
    """The `ReportRequest` of a report. Null for an export."""
    status: Mapped[TaskStatus] = mapped_column(String, default="queued")
    number: Mapped[int] = mapped_column(default=0)
    """Number of the newest try. Older tries can no longer write."""
    worker_id: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    not_before: Mapped[datetime | None]
    """When a worker may begin it after it has waited for memory. Null if it never had to wait."""
    started_at: Mapped[datetime | None]
    """When the newest try began."""
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    """When the ended task is deleted, with its files. Each download puts it off. Null for a report,
    which is kept with its job."""
    crashes: Mapped[int] = mapped_column(default=0)
    """How many tries ended because their process died by itself, or because the disk was full."""
    releases: Mapped[int] = mapped_column(default=0)
    """How many tries a worker has given back, because it was stopped or a job needed the memory."""
    progress: Mapped[float] = mapped_column(default=0.0)
    """How much of the newest try is done, from 0 to 1."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Size of the files; before they are made, the room that is kept for them. They count as stored
    by the project."""
    result: Mapped[dict[str, Any] | None]
    """What the child reported in the end: the `Verification` of an export, an `AnswerReport`."""
    files: Mapped[dict[str, Any] | None]
    """Blob key, bytes, sha256 and crc32 of each file by name. Null until they are made, and for a
    report, which has none."""
    error: Mapped[dict[str, Any] | None]
    """A `JobError`."""
