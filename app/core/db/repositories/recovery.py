"""Jobs whose attempt ends before the job does: they are queued again, paused, or ended.

Crashes and interruptions are counted separately. A *crash* is a training process that died by
itself. Two crashes without progress end the job, because a third attempt would crash as well. An
*interruption* is a worker that died, or a machine that could not run the job. That is not the
job's fault, so ten are allowed. A pause and a worker that is told to stop count as neither. Every
saved state is progress and resets both counts.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import ColumnElement, select

from app.core.db.base import Repository
from app.core.db.repositories.base_models.stored import FETCH_PAUSE
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.repositories.transitions import Outcome, lock_job, settle
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.tables import Job
from app.core.job.child.training_events import JobError, MemoryShort
from app.core.job.status import JobStatus

MAX_CRASHES = 2
"""Crashes without progress after which a job fails."""

MAX_INTERRUPTIONS = 10
"""Interruptions without progress after which a job fails: it probably brings its workers down."""


MEMORY_PAUSE = timedelta(minutes=10)
"""Time after which a job that waits for memory is tried again even if too little seems to be free:
a worker may have its base model in memory already."""


@dataclass(frozen=True, slots=True)
class Crash:
    """A training process died by itself."""

    what: str
    """What happened, to begin a sentence with: `The process died of SIGSEGV`."""
    advice: str
    """How to avoid it."""
    last_line: str
    """Last line of its log. Empty if it wrote none."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """An attempt ended through no fault of the job."""

    what: str
    """What happened, to begin a sentence with: `The disk is full`."""
    advice: str = (
        "The job may be crashing its workers: check their logs and the machine's free memory."
    )
    """How to avoid it."""


@dataclass(frozen=True, slots=True)
class ModelAway:
    """The base model is not on the worker's machine, and cannot be fetched now."""

    message: str
    """Why, and what to do."""


@dataclass(frozen=True, slots=True)
class RescuedJob:
    """A job that has lost its worker, and the attempt that ended with it."""

    job_id: str
    project_id: str
    attempt: int


class RecoveryRepository(Repository):
    """Recovers the jobs of every project."""

    def release(self, lease: Lease, why: str, *, now: datetime) -> None:
        """Queue the job again, which its worker leaves after saving its state.

        Args:
            why: what happened, to begin a sentence with: `The worker was stopped`.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._put_back(LeaseRepository(self._session).hold(lease), "released", why, now=now)

    def crash(self, lease: Lease, crash: Crash, *, now: datetime) -> None:
        """Queue the job again after a crash, or end it if that was one crash too many.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = LeaseRepository(self._session).hold(lease)
        job.crashes += 1
        log = f" The last line of its log: {crash.last_line}" if crash.last_line else ""
        error = None
        if job.crashes >= MAX_CRASHES:
            times = f", {MAX_CRASHES} times without progress"
            error = JobError(
                code="training_crashed",
                message=f"{crash.what}{times}. {crash.advice}{self._how_to_continue(job)}{log}",
            )
        self._put_back(job, "crashed", crash.what, now=now, more=f".{log}", error=error)

    def interrupt(
        self, lease: Lease, interruption: Interruption | ModelAway, *, now: datetime
    ) -> None:
        """Queue the job again, which this machine cannot run now, or end it after too many tries.

        One that waits for its base model does not end. An event says so once for each reason.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = LeaseRepository(self._session).hold(lease)
        if isinstance(interruption, Interruption):
            self._interrupt(job, interruption, "released", now=now)
            return
        is_told = job.waiting_reason != interruption.message
        job.not_before, job.waiting_reason = now + FETCH_PAUSE, interruption.message
        why, more = "The base model could not be fetched", f". {interruption.message}"
        self._put_back(job, "released", why, now=now, more=more, is_told=is_told)

    def wait_for_memory(self, lease: Lease, short: MemoryShort, *, now: datetime) -> None:
        """Queue the job again until enough memory is free, or end it if no worker has so much.

        An event says so once, not after every try.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = LeaseRepository(self._session).hold(lease)
        is_known = job.waiting_reason is not None
        most = short.total_bytes
        if short.device == "cpu":
            most = max(most, WorkerRepository(self._session).largest_memory() or 0)
            job.needed_memory_bytes = short.needed_bytes
        job.not_before = now + MEMORY_PAUSE
        job.waiting_reason = short.message
        why = "Too little memory is free"
        if short.needed_bytes > short.total_bytes:
            why = "The worker has too little memory"
        error = None
        if short.needed_bytes > most:
            error = JobError(
                code="not_enough_memory",
                message=f"{why}. {short.message}",
                param="hyperparameters.context_length",
            )
        more = f". {short.message}"
        self._put_back(job, "released", why, now=now, more=more, error=error, is_told=not is_known)

    def rescue_expired(self, *, now: datetime) -> list[RescuedJob]:
        """Recover every job whose lease has run out."""
        return self._rescue(Job.lease_expires_at < now, "stopped responding", now=now)

    def rescue_orphans(
        self, dead_worker_ids: Collection[str], *, now: datetime
    ) -> list[RescuedJob]:
        """Recover the jobs of these workers without waiting for their leases."""
        if not dead_worker_ids:
            return []
        return self._rescue(Job.worker_id.in_(dead_worker_ids), "died", now=now)

    def cancel_running(self, project_id: str, *, now: datetime) -> None:
        """End what workers do for a project at once: training, and checks of data.

        The workers have lost their leases.
        """
        busy = (JobStatus.VALIDATING_FILES, JobStatus.RUNNING)
        their_jobs = (Job.project_id == project_id, Job.status.in_(busy))
        for job_id in self._session.scalars(select(Job.id).where(*their_jobs)).all():
            job = lock_job(self._session, Job.id == job_id, *their_jobs)
            if job is not None:
                settle(self._session, job, JobStatus.CANCELLED, now=now)

    def _rescue(
        self, is_lost: ColumnElement[bool], fate: str, *, now: datetime
    ) -> list[RescuedJob]:
        lost = select(Job).where(Job.status == JobStatus.RUNNING, is_lost)
        lost = lost.order_by(
            Job.project_id, Job.id
        )  # the usage of projects is locked in this order
        jobs = self._session.scalars(lost.with_for_update(skip_locked=True)).all()
        for job in jobs:
            why = Interruption(f"Its worker {job.worker_id} {fate}")
            self._interrupt(job, why, "lost", now=now, cause=f"The worker {fate}")
        return [RescuedJob(job.id, job.project_id, job.attempt) for job in jobs]

    def _interrupt(
        self,
        job: Job,
        interruption: Interruption,
        outcome: Outcome,
        *,
        now: datetime,
        cause: str | None = None,
    ) -> None:
        job.interruptions += 1
        error = None
        if job.interruptions >= MAX_INTERRUPTIONS:
            how = self._how_to_continue(job) or " POST .../rerun starts it again."
            error = JobError(
                code="interrupted_too_often",
                message=f"{interruption.what}, for the {job.interruptions}th time in a row without "
                f"progress. {interruption.advice}{how}",
            )
        self._put_back(job, outcome, interruption.what, now=now, error=error, cause=cause)

    def _put_back(
        self,
        job: Job,
        outcome: Outcome,
        why: str,
        *,
        now: datetime,
        more: str = "",
        error: JobError | None = None,
        is_told: bool = True,
        cause: str | None = None,
    ) -> None:
        """Cancel or pause the job if the user asked for that; otherwise fail it, or queue it."""
        step = SavedStateRepository(self._session, job.project_id).newest_step(job.id)
        if step == 0:
            job.plan = None  # it will start over, so any worker may plan it
        move = partial(settle, self._session, job, now=now, outcome=outcome, cause=cause or why)
        is_asked = job.cancel_requested_at is not None or job.pause_requested_at is not None
        if is_asked and outcome == "released" and error is None:
            move = partial(settle, self._session, job, now=now)  # the worker did as it was asked
        if job.cancel_requested_at is not None:
            move(JobStatus.CANCELLED)
        elif error is not None:
            move(JobStatus.FAILED, error=error)
        elif job.pause_requested_at is not None:
            place = f"after step {step}" if step else "before any step was saved"
            move(JobStatus.PAUSED, message=f"Fine-tuning job paused {place}")
        else:
            place = f"resume after step {step}" if step else "start from its first step"
            message = f"{why}; the job is queued again and will {place}{more}"
            move(JobStatus.QUEUED, message=message, level="warn", is_told=is_told)

    def _how_to_continue(self, job: Job) -> str:
        step = SavedStateRepository(self._session, job.project_id).newest_step(job.id)
        how = f' POST .../rerun with {{"from": "saved_state"}} continues after step {step}.'
        return how if step else ""
