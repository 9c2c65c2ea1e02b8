"""Every query on jobs that the API makes. The queries of workers are in `leases`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased, joinedload

from app.core.abilities.needs import needs_of
from app.core.db.base import Order, Page, ProjectRepository, merge_pages
from app.core.db.check_tables import DataCheck
from app.core.db.project_tables import IdempotencyRecord
from app.core.db.repositories.events import EventRepository, no_such_job
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.repositories.sweeps.shared_checks import pass_on_tokens
from app.core.db.repositories.sweeps.sweeps import SweepRepository
from app.core.db.repositories.tasks.requests import TaskRepository
from app.core.db.repositories.transitions import lock_job, settle
from app.core.db.tables import Checkpoint, Event, File, Job, JobMetadata, StepRow, TunedModel
from app.core.db.worker_tables import Attempt
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus

# These run many times a second, so they are built only once.
_BY_ID = (
    select(Job)
    .where(Job.id == bindparam("job_id"), Job.project_id == bindparam("project_id"))
    .options(joinedload(Job.metadata_items))
)
_EXISTS = select(Job.id).where(
    Job.id == bindparam("job_id"), Job.project_id == bindparam("project_id")
)
_PAUSED_LATER = (JobStatus.VALIDATING_FILES, JobStatus.RUNNING)
"""Statuses in which a job is asked to pause, and goes on for a while."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list has. A job must match everything that is set."""

    statuses: frozenset[JobStatus] | None = None
    base_model: str | None = None
    """Id of the base model."""
    search: str | None = None
    """Text that is part of the job's id, of the name of its model or base model, of its suffix, or
    of the key or value of a label. Upper and lower case are the same."""
    metadata: Mapping[str, str] | None = field(default_factory=dict[str, str])
    """Labels that a job must have, all of them. None selects jobs without labels."""

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """All conditions on a job, except that it has certain labels."""
        if self.statuses is not None:
            yield Job.status.in_(self.statuses)
        if self.base_model is not None:
            yield Job.base_model == self.base_model
        if self.metadata is None:
            yield ~Job.metadata_items.any()
        if self.search is not None:
            labels = (JobMetadata.key, JobMetadata.value)
            yield or_(
                *(self._is_in(column) for column in _SEARCHED),
                Job.metadata_items.any(or_(*(self._is_in(column) for column in labels))),
            )

    def _is_in(self, column: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
        return column.icontains(self.search, autoescape=True)


EVERY_JOB = JobFilter()
_SEARCHED = (Job.id, Job.fine_tuned_model, Job.base_model, Job.suffix)


class JobRepository(ProjectRepository):
    """The jobs of one project."""

    def add(self, job: Job, *, shared: str | None = None) -> None:
        """Add a new job. First its data is checked, once for all with the same `shared`."""
        self._add(job)
        self._add(DataCheck(job_id=job.id, shared=shared))
        messages = [
            f"Created fine-tuning job: {job.id}",
            f"Validating training file: {job.training_file_id}",
        ]
        if job.parent is not None:
            step, model = job.parent["step"], job.parent["model"]
            messages.insert(1, f"Continuing the adapter of {model}, saved at its step {step}")
        events = EventRepository(self._session, self._project_id)
        for message in messages:
            events.add(job.id, message, now=job.created_at)

    def add_imported(self, job: Job) -> None:
        """Add the job of an adapter that was made elsewhere. It has ended, and never trains."""
        self._add(job)
        events = EventRepository(self._session, self._project_id)
        events.add(job.id, f"Adapter imported as {job.fine_tuned_model}", now=job.created_at)

    def get(self, job_id: str) -> Job:
        """Return the job with this id.

        Raises:
            NotFoundError: no job has this id.
        """
        which = {"job_id": job_id, "project_id": self._project_id}
        job = self._session.scalars(_BY_ID, which).unique().one_or_none()
        if job is None:
            raise no_such_job(job_id)
        return job

    def require(self, job_id: str) -> None:
        """Check that the job exists.

        Raises:
            NotFoundError: no job has this id.
        """
        which = {"job_id": job_id, "project_id": self._project_id}
        if self._session.scalar(_EXISTS, which) is None:
            raise no_such_job(job_id)

    def list_page(
        self,
        *,
        after: str | None,
        limit: int,
        which: JobFilter = EVERY_JOB,
        order: Order = "desc",
    ) -> Page[Job]:
        """Return a page of the jobs that match, by the time of their creation.

        The ids are found first: an index has what they are filtered by, and is read much faster
        than the rows.
        """
        query, by = self._select(Job).with_only_columns(Job.id).where(*which.conditions()), Job.id
        for key, value in (which.metadata or {}).items():
            label = aliased(JobMetadata)
            is_it = and_(label.job_id == Job.id, label.key == key, label.value == value)
            query = query.join(label, is_it)
            by = label.job_id  # sorted by it, a rare label is found quickly among many jobs
        if by is Job.id and (which.statuses or which.base_model):
            # The page of each status: an index that begins with the status has it in order.
            each = (query.where(Job.status == status) for status in which.statuses or JobStatus)
            query, by = merge_pages(each, by, after=after, limit=limit, order=order)
        found = self._fetch_page(query, by, after=after, limit=limit, order=order)
        jobs = self._select(Job).where(Job.id.in_(found.rows))
        in_order = jobs.order_by(Job.id.asc() if order == "asc" else Job.id.desc())
        return Page(list(self._session.scalars(in_order)), found.has_more)

    def request_cancel(self, job_id: str, *, now: datetime) -> Job | None:
        """Cancel a waiting job, or ask a running one to stop. None if the job has already ended."""
        job = self._lock(job_id)
        if job is None or job.status.is_terminal:
            return None
        job.cancel_requested_at = job.cancel_requested_at or now
        if job.status is not JobStatus.RUNNING:
            settle(self._session, job, JobStatus.CANCELLED, now=now)
        return job

    def request_pause(self, job_id: str, *, now: datetime) -> Job | None:
        """Pause a queued job, or ask one that runs or is checked to pause. Otherwise None.

        A job that is being cancelled cannot be paused any more.
        """
        job = self._lock(job_id)
        if job is None or job.status not in (JobStatus.QUEUED, *_PAUSED_LATER):
            return None
        if job.status is JobStatus.QUEUED:
            settle(self._session, job, JobStatus.PAUSED, now=now)
        elif job.cancel_requested_at is None:
            job.pause_requested_at = job.pause_requested_at or now
        else:
            job.pause_requested_at = None
        return job

    def resume(self, job_id: str, *, now: datetime) -> Job | None:
        """Put a paused job back into the queue, at its old place. None if it is not paused.

        For a job that runs or is checked, and was asked to pause, this takes the request back.
        """
        job = self._lock(job_id)
        if job is None:
            return None
        if job.status is JobStatus.PAUSED:
            settle(self._session, job, JobStatus.QUEUED, now=now)
        elif job.status in _PAUSED_LATER and job.pause_requested_at is not None:
            job.pause_requested_at = None
            events = EventRepository(self._session, self._project_id)
            events.add(job_id, "Fine-tuning job resumed", now=now)
        else:
            return None
        return job

    def allow_inexact_resume(self, job_id: str, *, now: datetime) -> bool:
        """Let a job go on with another plan if need be. False if it may already, or has ended."""
        job = self._lock(job_id)
        if job is None or job.allow_inexact_resume or job.status.is_terminal:
            return False
        job.allow_inexact_resume = True
        job.needs = needs_of(job.base_model, job.needed_memory_bytes, job.plan, True)  # noqa: FBT003
        events = EventRepository(self._session, self._project_id)
        events.add(job_id, "The job may go on inexactly if no worker can do so exactly", now=now)
        return True

    def delete(self, job: Job) -> list[str]:
        """Delete a job that has ended and everything it made, but not its data files.

        Returns:
            Keys of the blobs to free after the transaction.

        Raises:
            NotFoundError: another transaction has deleted it meanwhile.
        """
        self._session.execute(self._delete(TunedModel).where(TunedModel.job_id == job.id))
        # Locks are taken in this order everywhere: files by id, then the job.
        made = self._select(File).where(File.job_id == job.id).order_by(File.id)
        keys = [file.blob_key for file in self._session.scalars(made.with_for_update())]
        keys += SavedStateRepository(self._session, self._project_id).delete(job.id)
        keys += TaskRepository(self._session, self._project_id).delete_of_job(job.id)
        checks = self._delete(DataCheck).where(DataCheck.job_id == job.id).returning(DataCheck)
        keys += [
            key
            for check in self._session.scalars(checks)
            for key in pass_on_tokens(self._session, check)
        ]
        for table in (File, Checkpoint, Event, IdempotencyRecord):
            self._session.execute(self._delete(table).where(table.job_id == job.id))
        for table in (StepRow, Attempt, JobMetadata):
            is_of_job = (table.job_id == job.id, self._owns(job.id))
            self._session.execute(delete(table).where(*is_of_job))
        deletion = self._delete(Job).where(Job.id == job.id).returning(Job.id)
        if self._session.scalar(deletion) is None:
            raise no_such_job(job.id)
        if job.sweep_id is not None:
            SweepRepository(self._session, self._project_id).delete_if_empty(job.sweep_id)
        return keys

    def find_check(self, job_id: str) -> DataCheck | None:
        """Return the check of a job's data. None for a job of a release that checked none."""
        its_check = self._select(DataCheck).where(DataCheck.job_id == job_id)
        return self._session.scalars(its_check).one_or_none()

    def list_attempts(self, job_id: str, *, limit: int) -> list[Attempt]:
        """Return the newest attempts at a job, oldest first."""
        its_attempts = select(Attempt).where(Attempt.job_id == job_id, self._owns(job_id))
        newest = its_attempts.order_by(Attempt.attempt.desc()).limit(limit)
        return list(self._session.scalars(newest))[::-1]

    def copy_steps(self, from_job_id: str, to_job_id: str, *, last: int) -> None:
        """Copy the loss log of one job, up to a step, to the loss log of another."""
        is_of_job = (StepRow.job_id == from_job_id, self._owns(from_job_id))
        # Attempt 0: every attempt of the other job comes after what is copied.
        copied = (StepRow.step, StepRow.metrics, StepRow.train_loss, StepRow.valid_loss)
        columns = (literal(to_job_id), literal(0), *copied)
        rows = select(*columns).where(*is_of_job, StepRow.step <= last)
        names = ["job_id", "attempt", *(column.key for column in copied)]
        self._session.execute(insert(StepRow).from_select(names, rows))

    def list_steps(
        self,
        job_id: str,
        *,
        first: int = 0,
        last: int | None = None,
        limit: int | None = None,
    ) -> list[StepMetrics]:
        """Return the loss log in the order of its steps, both ends included.

        Args:
            job_id: the job.
            first: first step. Step 0 is the model before training, in jobs with validation data.
            last: last step; None for the newest.
            limit: maximum number of rows; None for all.
        """
        is_of_job = (StepRow.job_id == job_id, self._owns(job_id))
        query = select(StepRow.metrics).where(*is_of_job, StepRow.step >= first)
        if last is not None:
            query = query.where(StepRow.step <= last)
        rows = self._session.scalars(query.order_by(StepRow.step).limit(limit))
        return [StepMetrics.model_validate(row) for row in rows]

    def _owns(self, job_id: str) -> ColumnElement[bool]:
        """Whether the project has this job: for tables whose rows name only their job."""
        return exists().where(Job.id == job_id, Job.project_id == self._project_id)

    def _lock(self, job_id: str) -> Job | None:
        return lock_job(self._session, Job.id == job_id, Job.project_id == self._project_id)
