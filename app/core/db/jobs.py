"""Every query on jobs that a caller's request makes; what workers ask is in `leases`."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import case, func, select, update

from app.core.db.events import EventRepository
from app.core.db.models import DEFAULT_PROJECT_ID, Job, JobMetadata, StepRow
from app.core.db.pages import Page, fetch_page
from app.core.db.session import Session
from app.core.errors import NotFoundError
from app.core.job_status import JobStatus
from app.core.loss_log import StepMetrics


class JobRepository:
    """The jobs of one project."""

    def __init__(self, session: Session, project_id: str = DEFAULT_PROJECT_ID) -> None:
        self._session = session
        self._project_id = project_id
        self._events = EventRepository(session, project_id)

    def add(self, job: Job) -> None:
        """Put a job into the queue."""
        job.project_id = self._project_id
        self._session.add(job)
        self._session.flush()
        for message in (
            f"Created fine-tuning job: {job.id}",
            f"Validating training file: {job.training_file_id}",
            "Files validated, moving job to queued state",
        ):
            self._events.add(job.id, message, now=job.created_at)

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            NotFoundError: there is none.
        """
        query = select(Job).where(Job.id == job_id, Job.project_id == self._project_id)
        job = self._session.scalar(query)
        if job is None:
            raise NotFoundError(f"No such fine-tuning job: {job_id:.80}", code="job_not_found")
        return job

    def list_page(
        self, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
    ) -> Page[Job]:
        """Newest first.

        Args:
            metadata: labels that a job must all have; None selects the jobs that have no label.
        """
        query = select(Job).where(Job.project_id == self._project_id)
        if metadata is None:
            query = query.where(~Job.metadata_items.any())
        for key, value in (metadata or {}).items():
            label = (JobMetadata.key == key) & (JobMetadata.value == value)
            query = query.where(Job.metadata_items.any(label))
        return fetch_page(self._session, query, Job.id, after=after, limit=limit)

    def queue_position(self, job: Job) -> int | None:
        """How many jobs a worker will take before this one, plus one; None once it was taken."""
        if job.status is not JobStatus.QUEUED:
            return None
        waiting = select(func.count()).where(Job.status == JobStatus.QUEUED, Job.id <= job.id)
        return self._session.scalar(waiting)

    def count_queued(self) -> int:
        """How many jobs of every project wait for a worker."""
        queued = select(func.count()).where(Job.status == JobStatus.QUEUED)
        return self._session.scalars(queued).one()

    def request_cancel(self, job_id: str, *, now: datetime) -> Job | None:
        """Cancel a queued job, or mark a running one; None when it has already ended.

        One statement decides which, so a worker that claims the job meanwhile is not overlooked.
        """
        is_queued = Job.status == JobStatus.QUEUED
        unfinished = Job.status.in_([JobStatus.QUEUED, JobStatus.RUNNING])
        job = self._session.scalars(
            update(Job)
            .where(Job.id == job_id, Job.project_id == self._project_id, unfinished)
            .values(
                cancel_requested_at=func.coalesce(Job.cancel_requested_at, now),
                status=case((is_queued, JobStatus.CANCELLED), else_=Job.status),
                finished_at=case((is_queued, now), else_=None),
            )
            .returning(Job),
            execution_options={"populate_existing": True},
        ).one_or_none()
        if job is not None and job.status is JobStatus.CANCELLED:
            self._events.add(job_id, "Fine-tuning job cancelled", now=now)
        return job

    def list_steps(
        self, job_id: str, *, first: int = 1, last: int | None = None
    ) -> list[StepMetrics]:
        """The loss log, by step, both ends included."""
        query = select(StepRow.metrics).where(StepRow.job_id == job_id, StepRow.step >= first)
        if last is not None:
            query = query.where(StepRow.step <= last)
        rows = self._session.scalars(query.order_by(StepRow.step))
        return [StepMetrics.model_validate(row) for row in rows]
