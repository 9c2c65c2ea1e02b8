"""What workers ask of jobs: claim one, keep it, write down what it does, end it.

`attempt` is the fence. Every write here names the attempt it belongs to, and one of an attempt
that is not the newest, or whose job has ended, is refused with LeaseLostError.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, delete, func, literal, select, update

from app.core.db.events import EventRepository, Level
from app.core.db.models import Attempt, Job, StepRow
from app.core.db.session import Session
from app.core.errors import LeaseLostError
from app.core.job_status import JobStatus
from app.core.loss_log import StepMetrics
from app.core.training_config import TrainingConfig


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one attempt of one job until its lease ends."""

    job_id: str
    project_id: str
    attempt: int
    worker_id: str
    base_model: str
    training_file_id: str
    validation_file_id: str | None
    fine_tuned_model: str
    config: TrainingConfig


class LeaseRepository:
    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, *, worker_id: str, now: datetime, lease_for: timedelta) -> Lease | None:
        """Hand the oldest queued job to `worker_id`, or return None when there is none.

        One statement, so two workers can never both win: SQLite has a single writer, and
        PostgreSQL skips the row another transaction has locked (SQLite ignores FOR UPDATE).
        """
        oldest_queued = (
            select(Job.id)
            .where(Job.status == JobStatus.QUEUED)
            .order_by(Job.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        job = self._session.scalars(
            update(Job)
            .where(Job.id == oldest_queued)
            .values(
                status=JobStatus.RUNNING,
                attempt=Job.attempt + 1,
                worker_id=worker_id,
                started_at=func.coalesce(Job.started_at, now),
                lease_expires_at=now + lease_for,
                total_steps=None,
                tokens_per_second=None,
                trained_steps=0,
                epoch=None,
                train_loss=None,
                valid_loss=None,
            )
            .returning(Job)
        ).one_or_none()
        if job is None:
            return None
        # An attempt starts from the first step, so what an earlier one logged is void.
        self._session.execute(delete(StepRow).where(StepRow.job_id == job.id))
        self._session.add(
            Attempt(job_id=job.id, attempt=job.attempt, worker_id=worker_id, started_at=now)
        )
        lease = _lease_of(job, worker_id)
        self.note(lease, "Fine-tuning job started", now=now)
        return lease

    def renew(self, lease: Lease, *, until: datetime) -> bool:
        """Keep the job until `until`. Returns whether its user has asked to cancel it.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        return self._update(lease, lease_expires_at=until).cancel_requested_at is not None

    def start(self, lease: Lease, *, total_steps: int) -> None:
        """Model and data are loaded; the job will take this many steps.

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
        self._session.add_all(
            StepRow(
                job_id=lease.job_id,
                step=row.step,
                attempt=lease.attempt,
                metrics=row.model_dump(),
            )
            for row in rows
        )

    def hold(self, lease: Lease) -> None:
        """Make the rest of this transaction conditional on still owning the job.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._update(lease, worker_id=lease.worker_id)

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
            estimated_finish_at=None,
            **values,
        )
        self._end_attempt(lease.job_id, lease.attempt, status, now=now)

    def release(self, lease: Lease, *, now: datetime) -> None:
        """Put the job back into the queue, at its old place; or cancel it, if that was asked for.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = self._update(lease, **_handed_back(now))
        self._end_attempt(lease.job_id, lease.attempt, "released", now=now)
        self._tell_handed_back(job, "The worker was stopped", now=now)

    def rescue(self, *, now: datetime) -> list[str]:
        """Put every job whose lease has run out back into the queue; returns their ids.

        One that was to be cancelled is cancelled instead.
        """
        lost = self._session.scalars(
            update(Job)
            .where(Job.status == JobStatus.RUNNING, Job.lease_expires_at < now)
            .values(_handed_back(now))
            .returning(Job)
        ).all()
        for job in lost:
            self._end_attempt(job.id, job.attempt, "lost", now=now)
            why = f"Its worker {job.worker_id} gave no sign of life"
            self._tell_handed_back(job, why, now=now)
        return [job.id for job in lost]

    def note(self, lease: Lease, message: str, *, now: datetime, level: Level = "info") -> None:
        """Tell the job's user something."""
        EventRepository(self._session, lease.project_id).add(
            lease.job_id, message, now=now, level=level
        )

    def _tell_handed_back(self, job: Job, why: str, *, now: datetime) -> None:
        events = EventRepository(self._session, job.project_id)
        if job.status is JobStatus.CANCELLED:
            events.add(job.id, "Fine-tuning job cancelled", now=now)
        else:
            events.add(job.id, f"{why}; the job is back in the queue", now=now, level="warn")

    def _update(self, lease: Lease, **values: Any) -> Job:
        job = self._session.scalars(
            update(Job)
            .where(
                Job.id == lease.job_id,
                Job.attempt == lease.attempt,
                Job.worker_id == lease.worker_id,
                Job.status == JobStatus.RUNNING,
            )
            .values(values)
            .returning(Job),
            execution_options={"populate_existing": True},
        ).one_or_none()
        if job is None:
            raise LeaseLostError(lease.job_id, lease.attempt)
        return job

    def _end_attempt(self, job_id: str, attempt: int, outcome: str, *, now: datetime) -> None:
        self._session.execute(
            update(Attempt)
            .where(Attempt.job_id == job_id, Attempt.attempt == attempt)
            .values(ended_at=now, outcome=outcome)
        )


def _handed_back(now: datetime) -> dict[str, Any]:
    """What a job becomes that its worker has left unfinished."""
    is_unwanted = Job.cancel_requested_at.is_not(None)
    status_type = Job.status.type
    return {
        "status": case(
            (is_unwanted, literal(JobStatus.CANCELLED, status_type)),
            else_=literal(JobStatus.QUEUED, status_type),
        ),
        "finished_at": case((is_unwanted, literal(now, Job.finished_at.type))),
        "lease_expires_at": None,
        "estimated_finish_at": None,
    }


def _lease_of(job: Job, worker_id: str) -> Lease:
    return Lease(
        job_id=job.id,
        project_id=job.project_id,
        attempt=job.attempt,
        worker_id=worker_id,
        base_model=job.base_model,
        training_file_id=job.training_file_id,
        validation_file_id=job.validation_file_id,
        fine_tuned_model=job.fine_tuned_model,
        config=TrainingConfig.model_validate(job.config),
    )
