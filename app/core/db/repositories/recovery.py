"""What becomes of a job whose attempt ends before the job does.

Three things are counted apart. A *crash* is the end of the training process by itself: a second
one without progress ends the job, for a third would end the same way. An *interruption* is the
end of the worker: not the job's fault, so many are forgiven. A worker that was told to stop, or a
pause, is charged to nobody. Progress is a saved state; each one sets both counts back to zero.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.leases import Lease, LeaseRepository, end_attempt
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.job.status import JobStatus

MAX_CRASHES = 2
"""Without progress."""

MAX_INTERRUPTIONS = 10
"""Without progress: by then it is likely that the job itself brings its workers down."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The end of a training process by itself."""

    what: str
    """What happened: the beginning of a sentence, as `The training process died of SIGSEGV`."""
    advice: str
    log_tail: str


_WHEN_WORKERS_VANISH = (
    "The job may bring its workers down: see their logs, and how much memory the machine has."
)


class RecoveryRepository:
    """Puts jobs back, for every project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def release(self, lease: Lease, why: str, *, now: datetime) -> None:
        """The worker leaves the job, through no fault of the job, after all was saved.

        Args:
            why: the beginning of a sentence, as `The worker was stopped`.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._hand_back(LeaseRepository(self._session).hold(lease), "released", why, now=now)

    def crash(self, lease: Lease, crash: Crash, *, now: datetime) -> None:
        """The training process died by itself: once more from the last state, or the end.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = LeaseRepository(self._session).hold(lease)
        job.crashes += 1
        log = f" The end of its log:\n{crash.log_tail}" if crash.log_tail else ""
        error = None
        if job.crashes >= MAX_CRASHES:
            times = f", {MAX_CRASHES} times without progress"
            error = _error(
                code="training_crashed",
                message=f"{crash.what}{times}. {crash.advice}{self._how_to_continue(job)}{log}",
            )
        self._hand_back(job, "crashed", crash.what, now=now, more=f".{log}", error=error)

    def give_up(self, lease: Lease, why: str, advice: str, *, now: datetime) -> None:
        """The machine could not run the job: another time it may, but not for ever.

        Args:
            why: the beginning of a sentence, as `The disk is full`.
            advice: what to do about it, should it not end by itself.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = LeaseRepository(self._session).hold(lease)
        self._lose(job, why, "released", advice, now=now)

    def rescue_expired(self, *, now: datetime) -> list[str]:
        """Put every job whose lease has run out back; returns their ids."""
        expired = select(Job).where(Job.status == JobStatus.RUNNING, Job.lease_expires_at < now)
        jobs = self._session.scalars(expired.with_for_update(skip_locked=True)).all()
        for job in jobs:
            self._lose(job, f"Its worker {job.worker_id} gave no sign of life", now=now)
        return [job.id for job in jobs]

    def rescue_orphans(self, dead_worker_ids: Collection[str], *, now: datetime) -> list[str]:
        """Put the jobs of these workers back, whatever their lease says; returns their ids."""
        if not dead_worker_ids:
            return []
        running = (Job.status == JobStatus.RUNNING, Job.worker_id.in_(dead_worker_ids))
        orphans = self._session.scalars(
            select(Job).where(*running).with_for_update(skip_locked=True)
        ).all()
        for job in orphans:
            self._lose(job, f"Its worker {job.worker_id} died", now=now)
        return [job.id for job in orphans]

    def _lose(
        self,
        job: Job,
        why: str,
        outcome: str = "lost",
        advice: str = _WHEN_WORKERS_VANISH,
        *,
        now: datetime,
    ) -> None:
        job.interruptions += 1
        error = None
        if job.interruptions >= MAX_INTERRUPTIONS:
            how = self._how_to_continue(job)
            error = _error(
                code="interrupted_too_often",
                message=f"{why}, for the {job.interruptions}th time in a row without progress. "
                f"{advice}{how or ' POST .../rerun starts it again.'}",
            )
        self._hand_back(job, outcome, why, now=now, error=error)

    def _hand_back(
        self,
        job: Job,
        outcome: str,
        why: str,
        *,
        now: datetime,
        more: str = "",
        error: dict[str, Any] | None = None,
    ) -> None:
        events = EventRepository(self._session, job.project_id)
        place = self._place(job)
        if job.cancel_requested_at is not None:
            job.status, job.finished_at = JobStatus.CANCELLED, now
            events.add(job.id, "Fine-tuning job cancelled", now=now)
        elif error is not None:
            job.status, job.finished_at, job.error = JobStatus.FAILED, now, error
            message = f"The job failed: {error['message']}"
            events.add(job.id, message, now=now, level="error")
        elif job.pause_requested_at is not None:
            job.status = JobStatus.PAUSED
            events.add(job.id, f"Fine-tuning job paused{place}", now=now)
        else:
            job.status = JobStatus.QUEUED
            message = f"{why}; the job is back in the queue and goes on{place}{more}"
            events.add(job.id, message, now=now, level="warn")
        job.pause_requested_at = job.lease_expires_at = job.estimated_finish_at = None
        end_attempt(self._session, job.id, job.attempt, outcome, now=now)
        self._session.flush()

    def _how_to_continue(self, job: Job) -> str:
        step = SavedStateRepository(self._session).newest_step(job.id)
        how = f' POST .../rerun with {{"from": "saved_state"}} continues after step {step}.'
        return how if step else ""

    def _place(self, job: Job) -> str:
        step = SavedStateRepository(self._session).newest_step(job.id)
        return f" after step {step}" if step else " from its first step"


def _error(*, code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "errors": []}
