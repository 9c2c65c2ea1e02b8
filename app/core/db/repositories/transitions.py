"""The only code that changes the status of a job, except for the claim, which is one statement.

Lock the row first, with `lock_job` or `LeaseRepository.hold`, then call `settle`.
"""

from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, case, select, update

from app.core.abilities.needs import needs_of
from app.core.db.repositories.events import EventRepository, Level
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.webhooks import WebhookRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.job.child.training_events import JobError
from app.core.job.status import TRANSITIONS, IllegalTransitionError, JobStatus
from app.core.webhooks.events import EVENT_OF_STATUS

Outcome = Literal["released", "crashed", "lost"]
"""How an attempt ended when it did not end its job."""

UNREADABLE = JobError(
    code="settings_unreadable",
    message="This version of Tunery cannot read the settings of the job. Create the job again.",
)
"""Error of a job that is claimed and whose settings are of a newer version."""

_EVENT_TEXTS = {
    JobStatus.QUEUED: "Fine-tuning job resumed",
    JobStatus.PAUSED: "Fine-tuning job paused",
    JobStatus.SUCCEEDED: "The job has successfully completed",
    JobStatus.CANCELLED: "Fine-tuning job cancelled",
}


def lock_job(session: Session, *which: ColumnElement[bool]) -> Job | None:
    """Return the one job that matches, as it is now. Nobody else changes it in this transaction.

    PostgreSQL locks the row as an UPDATE would. SQLite has a single writer, so it needs no lock.
    """
    query = select(Job).where(*which).with_for_update(key_share=True)
    return session.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def settle(
    session: Session,
    job: Job,
    status: JobStatus,
    *,
    now: datetime,
    outcome: Outcome | None = None,
    error: JobError | None = None,
    message: str | None = None,
    level: Level = "info",
    is_told: bool = True,
    cause: str | None = None,
) -> None:
    """Move a job to its next status: write the row, its attempt, the event and the webhooks.

    Args:
        job: its row must be locked by this transaction.
        outcome: how the attempt of a running job ended. By default the new status says it.
        error: why the job failed; for `FAILED` only.
        message: text of the event, where the usual one does not say enough.
        level: level of that event.
        is_told: whether there is an event.
        cause: why the attempt of a running job ended, to begin a sentence with: `The worker died`.
            By default the error says it, or the new status alone.

    Raises:
        IllegalTransitionError: the job cannot go from its present status to this one.
    """
    before = job.status
    if status not in TRANSITIONS[before]:
        raise IllegalTransitionError(job.id, before, status)
    job.status = status
    job.finished_at = now if status.is_terminal else None
    job.lease_expires_at = job.pause_requested_at = job.estimated_finish_at = None
    job.needs = needs_of(
        job.base_model, job.needed_memory_bytes, job.plan, job.allow_inexact_resume
    )
    if error is not None:
        job.error = error.model_dump(mode="json")
        message, level = f"The job failed: {error.message}", "error"
    if before is JobStatus.RUNNING:
        ended = session.execute(
            update(Attempt)
            .where(Attempt.job_id == job.id, Attempt.attempt == job.attempt)
            .values(
                ended_at=now,
                outcome=outcome or status,
                to_step=case((Attempt.from_step.is_not(None), job.trained_steps)),
                cause=cause or (error and error.message),
            )
            .returning(Attempt.started_at, Attempt.threads)
        ).one_or_none()
        if ended is not None:
            seconds = max(0.0, (now - ended.started_at).total_seconds())
            usage = UsageRepository(session, job.project_id)
            usage.add(processor_s=seconds * ended.threads, now=now)
    if is_told:
        events = EventRepository(session, job.project_id)
        events.add(job.id, message or _EVENT_TEXTS[status], now=now, level=level)
    announce(session, job, now=now)
    session.flush()


def announce(session: Session, job: Job, *, now: datetime) -> None:
    """Queue the webhooks that say which status a job has reached, if that status has any."""
    event_type = EVENT_OF_STATUS.get(job.status)
    if event_type is not None:
        WebhookRepository(session, job.project_id).announce(event_type, job.id, now=now)
