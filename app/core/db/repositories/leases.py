"""What workers ask of jobs: claim one, keep it, write down what it does, end it.

`attempt` is the fence. Every write here names the attempt it belongs to, and one of an attempt
that is not the newest, or whose job has ended, is refused with LeaseLostError. What becomes of a
job whose attempt ends before the job does is in `recovery`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, delete, func, select, update

from app.core.db.repositories.events import EventRepository, Level
from app.core.db.session import Session
from app.core.db.tables import Attempt, Job, SavedState, StepRow
from app.core.errors import LeaseLostError
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one attempt of one job until its lease ends."""

    job_id: str
    project_id: str
    attempt: int
    worker_id: str
    base_model: str
    base_model_sha256: str | None
    training_file_id: str
    validation_file_id: str | None
    fine_tuned_model: str
    config: TrainingConfig


class Wish(Enum):
    """What a running job's user wants of it."""

    GO_ON = auto()
    PAUSE = auto()
    CANCEL = auto()


class LeaseRepository:
    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, worker_id: str, *, now: datetime, lease_for: timedelta) -> Lease | None:
        """Hand the queued job that is next to this worker, or return None when there is none.

        One statement, so two workers can never both win: SQLite has a single writer, and
        PostgreSQL skips the row another transaction has locked (SQLite ignores FOR UPDATE).
        """
        next_queued = (
            select(Job.id)
            .where(Job.status == JobStatus.QUEUED)
            .order_by(Job.priority.desc(), Job.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        job = self._session.scalars(
            update(Job)
            .where(Job.id == next_queued)
            .values(
                status=JobStatus.RUNNING,
                attempt=Job.attempt + 1,
                worker_id=worker_id,
                started_at=func.coalesce(Job.started_at, now),
                lease_expires_at=now + lease_for,
                tokens_per_second=None,
            )
            .returning(Job)
        ).one_or_none()
        if job is None:
            return None
        self._session.add(
            Attempt(
                job_id=job.id,
                attempt=job.attempt,
                worker_id=worker_id,
                started_at=now,
            )
        )
        lease = _lease_of(job, worker_id)
        if lease is None:  # else nobody would ever come to the jobs behind it
            self._fail_unreadable(job, now=now)
        return lease

    def begin(self, lease: Lease, *, after_step: int, now: datetime) -> None:
        """Start training, or go on after `after_step`: what was logged beyond that is void.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        anew: dict[str, Any] = {"total_steps": None, "epoch": None, "train_loss": None}
        self._update(
            lease,
            trained_steps=after_step,
            **({} if after_step else anew | {"valid_loss": None}),
        )
        self._session.execute(
            delete(StepRow).where(StepRow.job_id == lease.job_id, StepRow.step > after_step)
        )
        # A newer state, which could not be read, has no loss log to go on from any more.
        self._session.execute(
            delete(SavedState).where(
                SavedState.job_id == lease.job_id, SavedState.step > after_step
            )
        )
        if after_step:
            self.note(lease, f"Fine-tuning job resumed after step {after_step}", now=now)
        else:
            self.note(lease, "Fine-tuning job started", now=now)
        self.note(lease, f"Loading base model {lease.base_model}", now=now)

    def renew(self, lease: Lease, *, until: datetime) -> Wish:
        """Keep the job until `until`. Returns what its user wants of it.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        return _wish_of(self._update(lease, lease_expires_at=until))

    def read_wish(self, lease: Lease) -> Wish:
        """What the job's user wants of it; writes nothing.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = self._session.scalar(select(Job).where(*_is_held(lease)))
        if job is None:
            raise LeaseLostError(lease.job_id, lease.attempt)
        return _wish_of(job)

    def start(self, lease: Lease, *, total_steps: int) -> None:
        """The data is tokenized; the job will take this many steps.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._update(lease, total_steps=total_steps)

    def record_steps(
        self,
        lease: Lease,
        rows: Sequence[StepMetrics],
        *,
        tokens_per_second: float | None,
        estimated_finish_at: datetime | None,
    ) -> None:
        """Append to the loss log; the rows follow those recorded before.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        evaluated = [row.valid_loss for row in rows if row.valid_loss is not None]
        self._update(
            lease,
            trained_steps=rows[-1].step,
            epoch=rows[-1].epoch,
            train_loss=rows[-1].train_loss,
            **({"valid_loss": evaluated[-1]} if evaluated else {}),
            tokens_per_second=tokens_per_second,
            estimated_finish_at=estimated_finish_at,
        )
        # Of a commit whose answer was lost on its way, the same rows may be there already.
        self._session.execute(
            delete(StepRow).where(StepRow.job_id == lease.job_id, StepRow.step >= rows[0].step)
        )
        self._session.add_all(
            StepRow(
                job_id=lease.job_id,
                step=row.step,
                attempt=lease.attempt,
                metrics=row.model_dump(),
            )
            for row in rows
        )

    def hold(self, lease: Lease) -> Job:
        """Make the rest of this transaction conditional on still owning the job, and lock it.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        return self._update(lease, worker_id=lease.worker_id)

    def finish(self, lease: Lease, status: JobStatus, *, now: datetime, **values: Any) -> None:
        """End the job, in a terminal status, with the last columns it gets.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._update(
            lease,
            status=status,
            finished_at=now,
            lease_expires_at=None,
            pause_requested_at=None,
            estimated_finish_at=None,
            **values,
        )
        end_attempt(self._session, lease.job_id, lease.attempt, status, now=now)

    def _fail_unreadable(self, job: Job, *, now: datetime) -> None:
        message = "The settings of the job are not those of this version. Create the job again."
        job.status, job.finished_at, job.lease_expires_at = JobStatus.FAILED, now, None
        job.error = {"code": "settings_unreadable", "message": message, "param": None, "errors": []}
        end_attempt(self._session, job.id, job.attempt, JobStatus.FAILED, now=now)
        events = EventRepository(self._session, job.project_id)
        events.add(job.id, f"The job failed: {message}", now=now, level="error")
        self._session.flush()

    def note(self, lease: Lease, message: str, *, now: datetime, level: Level = "info") -> None:
        """Tell the job's user something."""
        EventRepository(self._session, lease.project_id).add(
            lease.job_id, message, now=now, level=level
        )

    def _update(self, lease: Lease, **values: Any) -> Job:
        job = self._session.scalars(
            update(Job).where(*_is_held(lease)).values(values).returning(Job),
            execution_options={"populate_existing": True},
        ).one_or_none()
        if job is None:
            raise LeaseLostError(lease.job_id, lease.attempt)
        return job


def end_attempt(
    session: Session, job_id: str, attempt: int, outcome: str, *, now: datetime
) -> None:
    """Note that an attempt is over, and how it ended."""
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.attempt == attempt)
        .values(ended_at=now, outcome=outcome)
    )


def _is_held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    """The fence."""
    return (
        Job.id == lease.job_id,
        Job.attempt == lease.attempt,
        Job.worker_id == lease.worker_id,
        Job.status == JobStatus.RUNNING,
    )


def _wish_of(job: Job) -> Wish:
    if job.cancel_requested_at is not None:
        return Wish.CANCEL
    return Wish.GO_ON if job.pause_requested_at is None else Wish.PAUSE


def _lease_of(job: Job, worker_id: str) -> Lease | None:
    """None when the job's settings are not ones that this version knows."""
    try:
        config = TrainingConfig.model_validate(job.config)
    except ValidationError:
        return None
    return Lease(
        job_id=job.id,
        project_id=job.project_id,
        attempt=job.attempt,
        worker_id=worker_id,
        base_model=job.base_model,
        base_model_sha256=job.base_model_sha256,
        training_file_id=job.training_file_id,
        validation_file_id=job.validation_file_id,
        fine_tuned_model=job.fine_tuned_model,
        config=config,
    )
