"""Reads and cancels sweeps. The caller owns the transaction."""

from collections.abc import Sequence
from datetime import datetime

from app.core.access import Caller
from app.core.db.check_tables import Sweep
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.repositories.sweeps.sweeps import SweepJob, SweepRepository
from app.core.db.session import Session
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.schemas.bodies import PageRead
from app.schemas.fine_tuning_jobs import status_shown
from app.schemas.sweeps import SweepPoint, SweepRead

_BY_PROGRESS = (
    JobStatus.RUNNING,
    JobStatus.QUEUED,
    JobStatus.VALIDATING_FILES,
    JobStatus.PAUSED,
    JobStatus.SUCCEEDED,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
)
"""The first of these statuses that a job has is that of the sweep."""


def get_sweep(session: Session, caller: Caller, sweep_id: str, settings: Settings) -> SweepRead:
    """The sweep with this id on the wire.

    Raises:
        NotFoundError: no sweep has this id.
    """
    sweeps = SweepRepository(session, caller.project_id)
    jobs = sweeps.list_jobs([sweep_id])  # first: a sweep that is still there afterwards has some
    return _read(sweeps.get(sweep_id), jobs, settings)


def list_sweeps(
    session: Session, caller: Caller, settings: Settings, *, after: str | None, limit: int
) -> PageRead[SweepRead]:
    """A page of sweeps on the wire, newest first."""
    sweeps = SweepRepository(session, caller.project_id)
    page = sweeps.list_page(after=after, limit=limit)
    jobs: dict[str, list[SweepJob]] = {sweep.id: [] for sweep in page.rows}
    for job in sweeps.list_jobs(jobs):
        jobs[job.sweep_id].append(job)
    return PageRead[SweepRead].of(page, lambda sweep: _read(sweep, jobs[sweep.id], settings))


def cancel_sweep(session: Session, caller: Caller, sweep_id: str, *, now: datetime) -> None:
    """Stop all jobs of a sweep that have not ended. Cancelling twice has no further effect.

    Raises:
        NotFoundError: no sweep has this id.
    """
    sweeps = SweepRepository(session, caller.project_id)
    sweep = sweeps.get(sweep_id)
    jobs = JobRepository(session, caller.project_id)
    for job in sweeps.list_jobs([sweep.id]):  # oldest first, as a check of data locks them
        if jobs.request_cancel(job.id, now=now) is not None:
            audit.record(session, caller, Action.JOB_CANCELLED, job.id, now=now)


def _read(sweep: Sweep, jobs: Sequence[SweepJob], settings: Settings) -> SweepRead:
    points = sorted((_point(sweep, job, settings) for job in jobs), key=_by_loss)
    best = points[0] if points[0].result_valid_loss is not None else None
    statuses = {job.status for job in jobs}
    ends = [job.finished_at for job in jobs if job.finished_at is not None]
    status = next(each for each in _BY_PROGRESS if each in statuses)
    return SweepRead.model_validate(
        {
            "id": sweep.id,
            "created_at": sweep.created_at,
            "finished_at": max(ends) if len(ends) == len(jobs) else None,
            "status": status_shown(status, settings),
            "model": jobs[0].base_model,
            "training_file": jobs[0].training_file_id,
            "validation_file": jobs[0].validation_file_id,
            "points": points,
            "best": best,
        }
    )


def _point(sweep: Sweep, job: SweepJob, settings: Settings) -> SweepPoint:
    has_succeeded = job.status is JobStatus.SUCCEEDED
    return SweepPoint(
        job_id=job.id,
        hyperparameters=sweep.points[job.id],
        status=status_shown(job.status, settings),
        fine_tuned_model=job.fine_tuned_model if has_succeeded else None,
        trained_steps=job.trained_steps,
        total_steps=job.total_steps,
        valid_loss=job.valid_loss,
        result_valid_loss=(job.metrics or {}).get("valid_loss"),
    )


def _by_loss(point: SweepPoint) -> tuple[bool, float]:
    loss = point.result_valid_loss
    return (loss is None, loss or 0.0)
