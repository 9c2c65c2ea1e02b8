"""Operations on existing jobs and their results. The caller owns the transaction."""

from collections.abc import Sequence
from datetime import datetime

from app.core.access import Caller
from app.core.db.base import Order
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.job_views.waiting import WaitingReasons
from app.core.db.repositories.jobs import JobFilter, JobRepository
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.repositories.queue import QueueRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, Job
from app.core.errors import NotFoundError, StateConflictError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.schemas.bodies import PageRead
from app.schemas.fine_tuning_jobs import JobRead
from app.services.adapters.parents import require_unneeded

_MAX_STEP_DIGITS = 9
"""Maximum number of digits of a step, as in the name of a checkpoint's directory."""


def get_job(session: Session, caller: Caller, job_id: str, settings: Settings) -> JobRead:
    """The job with this id on the wire.

    Raises:
        NotFoundError: no job has this id.
    """
    job = JobRepository(session, caller.project_id).get(job_id)
    return read_job(session, job, settings)


def list_jobs(
    session: Session,
    caller: Caller,
    settings: Settings,
    *,
    after: str | None,
    limit: int,
    which: JobFilter,
    order: Order,
) -> PageRead[JobRead]:
    """A page of the jobs that match, on the wire."""
    jobs = JobRepository(session, caller.project_id)
    page = jobs.list_page(after=after, limit=limit, which=which, order=order)
    shown = read_jobs(session, page.rows, settings)
    return PageRead[JobRead].of(page, lambda job: shown[job.id])


def read_job(session: Session, job: Job, settings: Settings) -> JobRead:
    """The job on the wire, with its place in the queue and why it waits."""
    position = QueueRepository(session).position(job)
    reasons = WaitingReasons(session).find([job], {job.id: position})
    return JobRead.of(job, settings, queue_position=position, waiting_reason=reasons[job.id])


def read_jobs(session: Session, jobs: Sequence[Job], settings: Settings) -> dict[str, JobRead]:
    """The same as `read_job` for many jobs of one project, by their ids."""
    positions = QueueRepository(session).positions(jobs)
    reasons = WaitingReasons(session).find(jobs, positions)
    return {
        job.id: JobRead.of(
            job, settings, queue_position=positions[job.id], waiting_reason=reasons[job.id]
        )
        for job in jobs
    }


def cancel_job(session: Session, caller: Caller, job_id: str, *, now: datetime) -> Job:
    """Stop a job as soon as possible.

    A running job is only marked, and its worker stops it within seconds. Any other job is cancelled
    at once. Cancelling twice has no further effect.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has already succeeded or failed.
    """
    jobs = JobRepository(session, caller.project_id)
    cancelled = jobs.request_cancel(job_id, now=now)
    if cancelled is not None:
        audit.record(session, caller, Action.JOB_CANCELLED, job_id, now=now)
        return cancelled
    job = jobs.get(job_id)
    if job.status is not JobStatus.CANCELLED:
        raise StateConflictError(
            f"Job {job_id} has already {job.status}, so it cannot be cancelled.",
            code="job_not_cancellable",
        )
    return job


def pause_job(session: Session, caller: Caller, job_id: str, *, now: datetime) -> Job:
    """Take a job out of the queue until it is resumed.

    A queued job is paused at once. A running job is only marked, and its worker pauses it as soon
    as its state is saved. So is a job whose data is being checked, which is paused after that.
    Pausing twice has no further effect.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has ended or is being cancelled.
    """
    jobs = JobRepository(session, caller.project_id)
    paused = jobs.request_pause(job_id, now=now)
    job = paused or jobs.get(job_id)
    if job.status.is_terminal or job.cancel_requested_at is not None:
        how = f"has already {_ending(job)}" if job.status.is_terminal else "is being cancelled"
        raise StateConflictError(
            f"Job {job_id} {how}, so it cannot be paused.", code="job_not_pausable"
        )
    if paused is not None:
        audit.record(session, caller, Action.JOB_PAUSED, job_id, now=now)
    return job


def resume_job(
    session: Session, caller: Caller, job_id: str, *, may_be_inexact: bool = False, now: datetime
) -> Job:
    """Put a paused job back into the queue, or withdraw a request to pause that is not done yet.

    A job that is neither paused nor asked to pause stays as it is. Resuming twice is safe.

    Args:
        may_be_inexact: let the job go on with another plan if no worker can execute its own.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has ended.
    """
    jobs = JobRepository(session, caller.project_id)
    is_allowed = may_be_inexact and jobs.allow_inexact_resume(job_id, now=now)
    resumed = jobs.resume(job_id, now=now)
    job = resumed or jobs.get(job_id)
    if job.status.is_terminal:
        raise StateConflictError(
            f"Job {job_id} has already {_ending(job)}, so it cannot be resumed. "
            "POST .../rerun creates a new job from it.",
            code="job_not_resumable",
        )
    if resumed is not None or is_allowed:
        audit.record(session, caller, Action.JOB_RESUMED, job_id, now=now)
    return job


def delete_job(session: Session, caller: Caller, job_id: str, *, now: datetime) -> list[str]:
    """Delete a job that has ended and everything it made. The uploaded files stay.

    Returns:
        The keys of the blobs to delete once the transaction is committed.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has not ended, or an unfinished job continues its adapter.
    """
    jobs = JobRepository(session, caller.project_id)
    job = jobs.get(job_id)
    if not job.status.is_terminal:
        raise StateConflictError(
            f"Job {job_id} is {job.status}, and only a job that has ended can be deleted. Cancel "
            "it first.",
            code="job_not_deletable",
        )
    require_unneeded(session, caller, f"an adapter of {job_id}", job_id)
    audit.record(session, caller, Action.JOB_DELETED, job_id, now=now)
    return jobs.delete(job)


def get_adapter(
    session: Session, caller: Caller, job_id: str, checkpoint: str | None
) -> Checkpoint:
    """The checkpoint that is a job's result, or another one of its checkpoints.

    Args:
        checkpoint: the id or the step of a checkpoint; None for the result.

    Raises:
        NotFoundError: the job or the checkpoint does not exist, or the adapter was deleted.
        StateConflictError: the job has no result, or does not have it yet.
    """
    job = JobRepository(session, caller.project_id).get(job_id)
    checkpoints = CheckpointRepository(session, caller.project_id)
    if checkpoint is not None:
        is_step = checkpoint.isdecimal() and len(checkpoint) <= _MAX_STEP_DIGITS
        named = (
            checkpoints.find_at_step(job_id, int(checkpoint))
            if is_step
            else checkpoints.find(job_id, checkpoint)
        )
        if named is None:
            raise NotFoundError(
                f"Job {job_id} has no checkpoint {checkpoint[:80]}.",
                code="checkpoint_not_found",
                param="checkpoint",
            )
        return named
    if job.result_checkpoint_id is None:
        raise StateConflictError(_why_no_adapter(job), code="adapter_not_ready")
    result = checkpoints.find(job_id, job.result_checkpoint_id)
    if result is None:
        raise NotFoundError(
            f"The adapter of job {job_id} was deleted, with its model {job.fine_tuned_model}.",
            code="adapter_deleted",
        )
    return result


def _why_no_adapter(job: Job) -> str:
    ending = f"is {job.status}" if job.status is not JobStatus.FAILED else "has failed"
    return (
        f"Job {job.id} {ending}, so it has no final adapter. To download a checkpoint that it has "
        "made, add ?checkpoint=STEP."
    )


def _ending(job: Job) -> str:
    return "been cancelled" if job.status is JobStatus.CANCELLED else job.status
