"""What a caller may ask of a job that there is. The caller owns the transaction."""

from datetime import datetime

from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.errors import StateConflictError
from app.core.job.status import JobStatus


def cancel_job(session: Session, job_id: str, *, now: datetime) -> Job:
    """Stop a job as soon as possible.

    One that no worker has is cancelled at once. A running job is only marked, and its worker
    stops it within seconds. Asking twice is the same as asking once.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has already succeeded or failed.
    """
    jobs = JobRepository(session)
    cancelled = jobs.request_cancel(job_id, now=now)
    if cancelled is not None:
        return cancelled
    job = jobs.get(job_id)
    if job.status is not JobStatus.CANCELLED:
        raise StateConflictError(
            f"Job {job_id} has already {job.status}, so it cannot be cancelled.",
            code="job_not_cancellable",
        )
    return job


def pause_job(session: Session, job_id: str, *, now: datetime) -> Job:
    """Take a job out of the queue until it is resumed.

    A queued job is paused at once. A running job is only marked, and its worker pauses it as soon
    as its state is saved. Asking twice is the same as asking once.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has ended, or is about to, because it was cancelled.
    """
    jobs = JobRepository(session)
    job = jobs.request_pause(job_id, now=now) or jobs.get(job_id)
    if job.status.is_terminal or job.cancel_requested_at is not None:
        how = f"has already {_ending(job)}" if job.status.is_terminal else "is being cancelled"
        raise StateConflictError(
            f"Job {job_id} {how}, so it cannot be paused.", code="job_not_pausable"
        )
    return job


def resume_job(session: Session, job_id: str, *, now: datetime) -> Job:
    """Put a paused job back into the queue, or take back what a running job was asked.

    A job that is queued or running anyway is left alone: asking twice is the same as asking once.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has ended.
    """
    jobs = JobRepository(session)
    job = jobs.resume(job_id, now=now) or jobs.get(job_id)
    if job.status.is_terminal:
        raise StateConflictError(
            f"Job {job_id} has already {_ending(job)}, so it cannot be resumed. "
            "POST .../rerun makes a new job of it.",
            code="job_not_resumable",
        )
    return job


def delete_job(session: Session, job_id: str) -> list[str]:
    """Forget a job that has ended, with all that it has made; the files it has read stay.

    Returns:
        The keys of the blobs to free once the transaction is committed.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has not ended.
    """
    jobs = JobRepository(session)
    job = jobs.get(job_id)
    if not job.status.is_terminal:
        raise StateConflictError(
            f"Job {job_id} is {job.status}; only a job that has ended can be deleted. Cancel it "
            "first.",
            code="job_not_deletable",
        )
    return jobs.delete(job)


def _ending(job: Job) -> str:
    return "been cancelled" if job.status is JobStatus.CANCELLED else job.status
