"""Lets a new job take over the saved state of one that has ended."""

from datetime import datetime, timedelta
from typing import Any

from app.core.access import Caller
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.saved_states import SavedStateRepository, may_be_continued
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.errors import StateConflictError
from app.core.job.status import JobStatus

_REPEAT = "Leave out 'from' to repeat the job from its first step."


def take_saved_state(
    session: Session, caller: Caller, job: Job, held_for: timedelta, *, now: datetime
) -> dict[str, Any]:
    """Lock the saved states of a job that has ended, so that another job can resume from them.

    Args:
        held_for: how long saved states are kept.

    Returns:
        The columns of the other job that record its progress so far.

    Raises:
        NotFoundError: the job has just been deleted.
        StateConflictError: there is no saved state, or the job cannot be resumed from it.
    """
    jobs = JobRepository(session, caller.project_id)
    if not job.status.is_terminal or not may_be_continued(job):
        raise _no_saved_state(job, _why_pointless(job))
    states = SavedStateRepository(session, caller.project_id).list_to_continue(job.id)
    if not states or job.finished_at is None or job.finished_at <= now - held_for:
        job_id = job.id
        session.expire(job)  # another request may have taken the states or deleted the job
        job = jobs.get(job_id)
        raise _no_saved_state(job, _why_gone(job, held_for, now=now))
    step = states[0].step
    (metrics,) = jobs.list_steps(job.id, first=step, last=step)
    return {
        "resumed_from_step": step,
        "plan": job.plan,
        "trained_steps": step,
        "total_steps": job.total_steps,
        "epoch": metrics.epoch,
        "train_loss": metrics.train_loss,
        "valid_loss": metrics.valid_loss,
    }


def hand_over_saved_state(
    session: Session, caller: Caller, job: Job, successor: Job, *, now: datetime
) -> None:
    """Move the locked states of `job` to `successor`, and copy the loss log up to them."""
    step = successor.resumed_from_step or 0
    JobRepository(session, caller.project_id).copy_steps(job.id, successor.id, last=step)
    SavedStateRepository(session, caller.project_id).move(job.id, successor.id)
    job.continued_by = successor.id
    events = EventRepository(session, caller.project_id)
    events.add(job.id, f"The job {successor.id} continues after step {step}", now=now)
    events.add(successor.id, f"Created to continue after step {step} of the job {job.id}", now=now)
    session.flush()


def _no_saved_state(job: Job, why: str) -> StateConflictError:
    return StateConflictError(
        f"There is no saved state of job {job.id} to resume from: {why}",
        code="no_saved_state",
        param="from",
    )


def _why_pointless(job: Job) -> str:
    if job.status is JobStatus.PAUSED:
        return "it is paused. POST .../resume continues it."
    if not job.status.is_terminal:
        return f"it is {job.status} and continues by itself."
    if job.status is JobStatus.SUCCEEDED:
        return f"it succeeded. {_REPEAT}"
    code = job.error["code"] if job.error else None
    return (
        f"it failed with {code} and would fail again. Fix the cause and create a new job, or leave "
        "out 'from' to repeat this job from its first step."
    )


def _why_gone(job: Job, held_for: timedelta, *, now: datetime) -> str:
    if job.continued_by is not None:
        return f"job {job.continued_by} has already resumed from it. {_REPEAT}"
    if job.finished_at is not None and job.finished_at <= now - held_for:
        held = f"{held_for / timedelta(days=1):.3g} days"
        return f"saved states are deleted {held} after the end of a job. {_REPEAT}"
    return f"it ended before it saved a state. {_REPEAT}"
