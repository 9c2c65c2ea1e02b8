"""Tables. Constraints here hold for every row, whatever code writes it."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    UniqueConstraint,
    select,
    text,
)
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from app.core.clock import utc_now
from app.core.db.base import Base, OwnedByProject
from app.core.db.check_tables import OfSweep
from app.core.db.worker_tables import NeedsWorker
from app.core.job.status import JobStatus

_TERMINAL = ", ".join(f"'{status}'" for status in JobStatus if status.is_terminal)
_OWN = text("checkpoint_id IS NULL")
_SEARCHED = ("status", "base_model", "fine_tuned_model", "suffix")
"""Columns by which a list of jobs is filtered. In the index, so that a filter reads no row."""


class File(OwnedByProject, Base):
    """Bytes in the blob store: an upload, or something that a job made."""

    __tablename__ = "files"
    __table_args__ = (
        Index(None, "project_id", "id"),
        Index(None, "project_id", "purpose", "id"),
        Index(None, "job_id", "project_id", "id"),
        Index(None, "checkpoint_id", "project_id"),
        Index("ix_files_listed", "project_id", "id", sqlite_where=_OWN, postgresql_where=_OWN),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    purpose: Mapped[str]
    filename: Mapped[str]
    """Name that the client gave. Never part of a path."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    crc32: Mapped[int] = mapped_column(BigInteger)
    """Checksum that a zip archive needs before the file's bytes."""
    blob_key: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    format: Mapped[str | None]
    """Format of a dataset: a `DatasetFormat`. Null for files that a job made."""
    examples: Mapped[int | None]
    uses_tools: Mapped[bool] = mapped_column(default=False)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """Job that made the file; null for an upload."""
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    """Checkpoint that the file belongs to; null for an upload or a loss log."""


class Upload(OwnedByProject, Base):
    """A file that is sent in parts. The parts are kept only while it is pending."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'completed', 'cancelled', 'expired')", "status"),
        CheckConstraint("(file_id IS NOT NULL) = (status = 'completed')", "file_of_completed"),
        CheckConstraint("(part_ids IS NOT NULL) = (status = 'completed')", "parts_of_completed"),
        Index(None, "status", "expires_at"),
        Index(None, "project_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Size that the file will have, as declared when the upload was created."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    file_expires_after_s: Mapped[int | None]
    """Lifetime of the file, counted from its completion; null if it does not expire."""
    part_ids: Mapped[list[str] | None]
    """The parts that the file was made of, in order."""
    file_id: Mapped[str | None]
    """The file that was made. No foreign key: the file may be deleted."""


class UploadPart(OwnedByProject, Base):
    """Bytes in the blob store that become part of a file. The same bytes are one part."""

    __tablename__ = "upload_parts"
    __table_args__ = (UniqueConstraint("upload_id", "sha256"), Index(None, "project_id", "bytes"))

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    blob_key: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]


class Job(OwnedByProject, NeedsWorker, OfSweep, Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"(finished_at IS NOT NULL) = (status IN ({_TERMINAL}))", "finished"),
        CheckConstraint("(lease_expires_at IS NOT NULL) = (status = 'running')", "leased"),
        CheckConstraint("(error IS NOT NULL) = (status = 'failed')", "error"),
        CheckConstraint(
            "(result_checkpoint_id IS NOT NULL) <= (status = 'succeeded')", "result_of_success"
        ),
        Index("ix_jobs_listed", "project_id", "id", *_SEARCHED),
        Index(None, "project_id", "status", "id"),
        Index(None, "project_id", "base_model", "status", "id"),
        Index(None, "parent_checkpoint_id", "project_id"),
        Index(None, "training_file_id", "project_id"),
        Index(None, "validation_file_id", "project_id"),
        Index(None, "project_id", "updated_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[JobStatus] = mapped_column(default=JobStatus.VALIDATING_FILES)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)
    """When the row was last written, but for renewals of its lease. It may be committed later."""
    started_at: Mapped[datetime | None]
    """When its first attempt began."""
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]
    """Set while a running job is asked to pause, and null again once it has paused."""
    priority: Mapped[int] = mapped_column(default=0)
    """Queue priority within the project: the highest runs first; among equals, the oldest job."""
    rerun_of: Mapped[str | None]
    """Job that this one repeats. No foreign key: either may be deleted."""
    resumed_from_step: Mapped[int | None]
    """Step of the saved state that the job was created with."""
    continued_by: Mapped[str | None]
    """The job that was created with the saved state of this one."""
    base_model: Mapped[str]
    base_model_sha256: Mapped[str | None]
    """Checksum of the base model's weights at creation. Every attempt must use the same weights."""
    training_file_id: Mapped[str]
    """No foreign key: an ended job outlives the files it was made from."""
    validation_file_id: Mapped[str | None]
    suffix: Mapped[str | None]
    parent: Mapped[dict[str, Any] | None]
    """A `ParentAdapter`: the adapter that the job continues. Null for a new one."""
    parent_checkpoint_id: Mapped[str | None]
    """Checkpoint of `parent`. It is kept until the job has ended."""
    imported: Mapped[dict[str, Any] | None]
    """An `ImportedArchive`, for an adapter that was made elsewhere. Null if the job trains."""
    config: Mapped[dict[str, Any]]
    """A `TrainingConfig`: every hyperparameter, resolved."""
    learning_rate_multiplier: Mapped[float | None]
    """Learning rate multiplier of the request, or that of its rate. Already applied in `config`."""
    integrations: Mapped[list[dict[str, Any]] | None]
    """Each is an `Integration`; null for none."""
    eval_prompts: Mapped[list[str] | None]
    """Prompts that the report answers besides the validation data; null for none."""
    eval_prompts_at_checkpoints: Mapped[bool] = mapped_column(default=False)
    """Whether they are answered at each checkpoint as well."""
    fine_tuned_model: Mapped[str] = mapped_column(index=True)
    """The name the tuned model has, or will have."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of the newest attempt. Older attempts can no longer write."""
    worker_id: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    crashes: Mapped[int] = mapped_column(default=0)
    """How often its training process died by itself since the last saved state."""
    interruptions: Mapped[int] = mapped_column(default=0)
    """How often its worker died, or could not run it, since the last saved state."""
    total_steps: Mapped[int | None]
    trained_steps: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[float | None]
    train_loss: Mapped[float | None]
    """Training loss of the last step, in nats per token."""
    valid_loss: Mapped[float | None]
    """Validation loss at the most recent evaluation, in nats per token."""
    tokens_per_second: Mapped[float | None]
    estimated_finish_at: Mapped[datetime | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    result_checkpoint_id: Mapped[str | None]
    result_file_id: Mapped[str | None] = mapped_column(index=True)
    error: Mapped[dict[str, Any] | None]
    """`code`, `message` and `param`, and `errors` for an invalid dataset."""
    event_count: Mapped[int] = mapped_column(default=0)
    """Number of events so far, including those that were deleted."""

    metadata_items: Mapped[list["JobMetadata"]] = relationship(
        lazy="selectin", order_by="JobMetadata.key"
    )


Index("ix_jobs_queue", Job.status, Job.project_id, Job.priority.desc(), Job.id)
_QUEUED = text("status = 'queued'")
_LINES = (Job.project_id, Job.needs, Job.priority.desc(), Job.id)
Index("ix_jobs_needs", *_LINES, sqlite_where=_QUEUED, postgresql_where=_QUEUED)


class JobMetadata(Base):
    """Labels that the caller chose. A table, so that lists can be filtered by them."""

    __tablename__ = "job_metadata"
    __table_args__ = (Index(None, "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class StepRow(Base):
    """One row of a job's loss log; `metrics` is a `StepMetrics`."""

    __tablename__ = "steps"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    train_loss: Mapped[float | None]
    """The same as in `metrics`. It is found in a column eight times as fast as in JSON."""
    valid_loss: Mapped[float | None]
    """The same as in `metrics`, for the same reason."""


class Event(OwnedByProject, Base):
    __tablename__ = "events"
    __table_args__ = (
        CheckConstraint("level IN ('info', 'warn', 'error')", "level"),
        CheckConstraint("type IN ('message', 'metrics')", "type"),
        Index(None, "job_id", "id"),
        Index(None, "job_id", "number", unique=True),
        Index(None, "project_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    """Number within the job, from 1, in the order of the commits. Ids follow clocks instead."""
    created_at: Mapped[datetime]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]


class Checkpoint(OwnedByProject, Base):
    """A whole, verified checkpoint; its files are the rows of `files` that name it."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"), Index(None, "project_id", "job_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    step: Mapped[int]
    created_at: Mapped[datetime]
    metrics: Mapped[dict[str, Any]]
    """The `StepMetrics` of its step. Empty for an imported adapter."""
    manifest_sha256: Mapped[str]
    files: Mapped[list[File]] = relationship(lazy="selectin", order_by=File.filename)


class SavedState(OwnedByProject, Base):
    """All that training needs to resume after a step. The newest two of each job are kept."""

    __tablename__ = "saved_states"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    saved_by: Mapped[str | None]
    """Job that saved the state, as its manifest says; null for `job_id` itself."""
    attempt: Mapped[int]
    created_at: Mapped[datetime]
    files: Mapped[dict[str, Any]]
    """Blob key, bytes and sha256 of each file by file name, including the manifest."""


class TunedModel(OwnedByProject, Base):
    """A tuned model, which can be requested by name until it is deleted."""

    __tablename__ = "tuned_models"
    __table_args__ = (Index(None, "project_id"), Index(None, "job_id", "project_id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    base_model: Mapped[str]
    created_at: Mapped[datetime]

    checkpoint: Mapped[Checkpoint] = relationship(lazy="joined")
    parent: Mapped[dict[str, Any] | None] = column_property(
        select(Job.parent).where(Job.id == job_id).scalar_subquery()
    )
    """`parent` of its job."""
    imported: Mapped[dict[str, Any] | None] = column_property(
        select(Job.imported).where(Job.id == job_id).scalar_subquery()
    )
    """`imported` of its job."""
