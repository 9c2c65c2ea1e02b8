"""Every query on jobs that a caller's request makes; what workers ask is in `leases`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased, joinedload

from app.core.db.base import DEFAULT_PROJECT_ID
from app.core.db.pages import Page, fetch_page
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.session import Session
from app.core.db.tables import (
    Attempt,
    Checkpoint,
    Event,
    File,
    IdempotencyRecord,
    Job,
    JobMetadata,
    StepRow,
    TunedModel,
)
from app.core.errors import NotFoundError
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus

_MadeByJob = (
    TunedModel | File | Checkpoint | Event | StepRow | Attempt | JobMetadata | IdempotencyRecord
)

MAX_QUEUE_POSITION = 1000
"""The place of every job that waits still further back: to count all would take the longer, the
longer the queue, each time that somebody looks."""

# Asked for many times a second, so built only once.
_BY_ID = (
    select(Job)
    .where(Job.id == bindparam("job_id"), Job.project_id == bindparam("project_id"))
    .options(joinedload(Job.metadata_items))
)
_EXISTS = select(Job.id).where(
    Job.id == bindparam("job_id"), Job.project_id == bindparam("project_id")
)
_AT_MOST = bindparam("at_most", type_=Integer)


def _count_waiting(*which: ColumnElement[bool]) -> ColumnElement[int]:
    """How many queued jobs there are of these, if not too many: a stretch of `ix_jobs_queue`."""
    found = select(literal(1).label("one")).where(Job.status == JobStatus.QUEUED, *which)
    bounded = found.limit(_AT_MOST).subquery()
    return select(func.count()).select_from(bounded).scalar_subquery()


_QUEUE_POSITION = select(
    _count_waiting(Job.priority > bindparam("priority"))
    + _count_waiting(Job.priority == bindparam("priority"), Job.id <= bindparam("job_id"))
)
_QUEUE_FRONT = (
    select(Job.id)
    .where(Job.status == JobStatus.QUEUED)
    .order_by(Job.priority.desc(), Job.id)
    .limit(_AT_MOST)
)


class JobRepository:
    """The jobs of one project."""

    def __init__(self, session: Session, project_id: str = DEFAULT_PROJECT_ID) -> None:
        self._session = session
        self._project_id = project_id
        self._events = EventRepository(session, project_id)

    def add(self, job: Job) -> None:
        """Put a job into the queue, or beside it when it is paused."""
        job.project_id = self._project_id
        self._session.add(job)
        self._session.flush()
        is_paused = job.status is JobStatus.PAUSED
        where = "paused until it is resumed" if is_paused else "moving job to queued state"
        for message in (
            f"Created fine-tuning job: {job.id}",
            f"Validating training file: {job.training_file_id}",
            f"Files validated, {where}",
        ):
            self._events.add(job.id, message, now=job.created_at)

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            NotFoundError: there is none.
        """
        which = {"job_id": job_id, "project_id": self._project_id}
        job = self._session.scalars(_BY_ID, which).unique().one_or_none()
        if job is None:
            raise _no_such_job(job_id)
        return job

    def require(self, job_id: str) -> None:
        """Make sure that there is such a job.

        Raises:
            NotFoundError: there is none.
        """
        which = {"job_id": job_id, "project_id": self._project_id}
        if self._session.scalar(_EXISTS, which) is None:
            raise _no_such_job(job_id)

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
        by = Job.id
        for key, value in (metadata or {}).items():
            label = aliased(JobMetadata)
            is_it = and_(label.job_id == Job.id, label.key == key, label.value == value)
            query = query.join(label, is_it)
            by = label.job_id  # in its order, jobs with a rare label are found among very many
        return fetch_page(self._session, query, by, after=after, limit=limit)

    def queue_position(self, job: Job) -> int | None:
        """How many jobs a worker will take before this one, plus one; None once it was taken.

        At most `MAX_QUEUE_POSITION`.
        """
        if job.status is not JobStatus.QUEUED:
            return None
        which = {"priority": job.priority, "job_id": job.id, "at_most": MAX_QUEUE_POSITION}
        return min(self._session.scalars(_QUEUE_POSITION, which).one(), MAX_QUEUE_POSITION)

    def queue_positions(self, jobs: Sequence[Job]) -> dict[str, int | None]:
        """The same for many jobs, by their ids, in one query."""
        queued = [job.id for job in jobs if job.status is JobStatus.QUEUED]
        bound = {"at_most": MAX_QUEUE_POSITION}
        front = self._session.scalars(_QUEUE_FRONT, bound) if queued else ()
        place = {job_id: number for number, job_id in enumerate(front, start=1)}
        positions: dict[str, int | None] = dict.fromkeys(job.id for job in jobs)
        return positions | {one: place.get(one, MAX_QUEUE_POSITION) for one in queued}

    def count_queued(self) -> int:
        """How many jobs of every project wait for a worker."""
        queued = select(func.count()).where(Job.status == JobStatus.QUEUED)
        return self._session.scalars(queued).one()

    def is_any_queued(self) -> bool:
        """Whether a job of any project waits for a worker."""
        query = select(Job.id).where(Job.status == JobStatus.QUEUED).limit(1)
        return self._session.scalar(query) is not None

    def request_cancel(self, job_id: str, *, now: datetime) -> Job | None:
        """Cancel a job that no worker has, or mark a running one; None when it has already ended.

        One statement decides which, so a worker that claims the job meanwhile is not overlooked.
        """
        is_idle = Job.status.in_([JobStatus.QUEUED, JobStatus.PAUSED])
        job = self._change(
            job_id,
            [JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.RUNNING],
            cancel_requested_at=func.coalesce(Job.cancel_requested_at, now),
            status=case((is_idle, JobStatus.CANCELLED), else_=Job.status),
            finished_at=case((is_idle, now), else_=None),
        )
        if job is not None and job.status is JobStatus.CANCELLED:
            self._events.add(job_id, "Fine-tuning job cancelled", now=now)
        return job

    def request_pause(self, job_id: str, *, now: datetime) -> Job | None:
        """Pause a queued job, or mark a running one; None when it is neither.

        One that is to be cancelled is not to be paused any more.
        """
        is_queued = Job.status == JobStatus.QUEUED
        is_wanted = and_(~is_queued, Job.cancel_requested_at.is_(None))
        job = self._change(
            job_id,
            [JobStatus.QUEUED, JobStatus.RUNNING],
            pause_requested_at=case((is_wanted, func.coalesce(Job.pause_requested_at, now))),
            status=case((is_queued, JobStatus.PAUSED), else_=Job.status),
        )
        if job is not None and job.status is JobStatus.PAUSED:
            self._events.add(job_id, "Fine-tuning job paused", now=now)
        return job

    def resume(self, job_id: str, *, now: datetime) -> Job | None:
        """Put a paused job back into the queue, at its old place; None when it is not paused.

        A running job that was asked to pause, and has not yet, is not asked any more.
        """
        is_paused = Job.status == JobStatus.PAUSED
        was_asked = Job.pause_requested_at.is_not(None)
        job = self._change(
            job_id,
            [JobStatus.PAUSED, JobStatus.RUNNING],
            or_(is_paused, was_asked),
            pause_requested_at=None,
            status=case((is_paused, JobStatus.QUEUED), else_=Job.status),
        )
        if job is not None:
            self._events.add(job_id, "Fine-tuning job resumed", now=now)
        return job

    def delete(self, job: Job) -> list[str]:
        """Forget a job that has ended, and all that it has made, but not the files it has read.

        Returns:
            The keys of the blobs to free afterwards.

        Raises:
            NotFoundError: another transaction has deleted it meanwhile.
        """
        self._delete_rows(job.id, TunedModel)
        # Locked in one order, and before the job: so does who deletes one of them, or its model.
        made = select(File).where(File.job_id == job.id).order_by(File.id).with_for_update()
        keys = [file.blob_key for file in self._session.scalars(made)]
        keys += SavedStateRepository(self._session).delete_all(job.id)
        self._delete_rows(
            job.id, File, Checkpoint, Event, StepRow, Attempt, JobMetadata, IdempotencyRecord
        )
        gone = self._session.scalar(delete(Job).where(Job.id == job.id).returning(Job.id))
        if gone is None:
            raise _no_such_job(job.id)
        return keys

    def _delete_rows(self, job_id: str, *tables: type[_MadeByJob]) -> None:
        for table in tables:
            self._session.execute(delete(table).where(table.job_id == job_id))

    def _change(
        self, job_id: str, allowed: list[JobStatus], *also: ColumnElement[bool], **values: Any
    ) -> Job | None:
        return self._session.scalars(
            update(Job)
            .where(
                Job.id == job_id, Job.project_id == self._project_id, Job.status.in_(allowed), *also
            )
            .values(values)
            .returning(Job),
            execution_options={"populate_existing": True},
        ).one_or_none()

    def copy_steps(self, from_job_id: str, to_job_id: str, *, last: int) -> None:
        """Begin the loss log of one job with that of another, up to a step."""
        columns = (StepRow.step, StepRow.attempt, StepRow.metrics)
        rows = select(literal(to_job_id), *columns).where(
            StepRow.job_id == from_job_id, StepRow.step <= last
        )
        names = ["job_id", *(column.key for column in columns)]
        self._session.execute(insert(StepRow).from_select(names, rows))

    def list_steps(
        self, job_id: str, *, first: int = 1, last: int | None = None
    ) -> list[StepMetrics]:
        """The loss log, by step, both ends included."""
        query = select(StepRow.metrics).where(StepRow.job_id == job_id, StepRow.step >= first)
        if last is not None:
            query = query.where(StepRow.step <= last)
        rows = self._session.scalars(query.order_by(StepRow.step))
        return [StepMetrics.model_validate(row) for row in rows]


def _no_such_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"No such fine-tuning job: {job_id:.80}", code="job_not_found")
