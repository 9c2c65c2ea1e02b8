"""Why a job waits, in sentences for people.

The reasons depend on the database alone, never on the time, so that an answer can be reused until
something is written. A worker runs until it deletes its row, another worker of its machine finds
that it died, or `WorkerWatch` notes that it is silent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from app.core.abilities.ability import Ability
from app.core.clock import SECONDS_AN_HOUR
from app.core.db.base import Project, Repository
from app.core.db.check_tables import DataCheck
from app.core.db.project_tables import ProjectUsage
from app.core.db.repositories.job_views.misfits import tell_misfit
from app.core.db.repositories.queue import MAX_POSITION
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.tables import Job
from app.core.job.status import JobStatus

_WAITING = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED)

_NO_WORKER = "No worker is running. Start one with `tunery worker`, or all with `tunery serve`."
_ALL_STOPPING = "Every worker has been told to stop and takes no more jobs."
_PAUSED = "The job is paused until it is resumed."
_UNCHECKED = "The job's data is checked as soon as a worker has time for it."
_NEXT = "The job is the next of its project. A worker takes it as soon as one is free."


@dataclass(frozen=True, slots=True)
class _Facts:
    """What decides when the jobs of a project start."""

    alive: int
    """Number of workers that are not silent."""
    taking: int
    """Number of these that have not been told to stop."""
    largest_memory: int | None
    """Memory of the largest of these workers, in bytes."""
    running: int
    """Number of running jobs of the project."""
    max_running: int | None
    used_hours: float
    """Processor hours of the newest month in which the project used something."""
    max_hours: float | None
    abilities: Mapping[Ability, str]
    """What these workers can do, each with the name of a machine."""


class WaitingReasons(Repository):
    """The reasons for which jobs of any project wait."""

    def find(
        self, jobs: Sequence[Job], positions: Mapping[str, int | None]
    ) -> dict[str, str | None]:
        """Return why each of some jobs of one project waits, by their ids.

        None for a job that has ended or that a worker is busy with.

        Args:
            jobs: the jobs.
            positions: their places in the queue, as `QueueRepository.positions` returns them.
        """
        reasons: dict[str, str | None] = dict.fromkeys(job.id for job in jobs)
        waiting = [job for job in jobs if job.status in _WAITING]
        if not waiting:
            return reasons
        facts = self._read_facts(waiting[0].project_id)
        checked = self._find_checked(waiting)
        for job in waiting:
            if job.status is JobStatus.PAUSED:
                reasons[job.id] = _PAUSED
            elif job.id not in checked:
                reasons[job.id] = _tell(job, positions[job.id] or 1, facts)
        return reasons

    def _read_facts(self, project_id: str) -> _Facts:
        workers = WorkerRepository(self._session).list_groups()
        taking = [group for group in workers if not group.is_stopping]
        is_running = (Job.status == JobStatus.RUNNING, Job.project_id == project_id)
        running = select(func.count()).where(*is_running).scalar_subquery()
        usage = select(ProjectUsage.processor_s).where(ProjectUsage.project_id == project_id)
        newest = usage.order_by(ProjectUsage.month.desc()).limit(1).scalar_subquery()
        limits = (Project.max_running_jobs, Project.max_processor_hours)
        query = select(running, func.coalesce(newest, 0.0), *limits)
        row = self._session.execute(query.where(Project.id == project_id)).one()
        return _Facts(
            alive=sum(group.workers for group in workers),
            taking=sum(group.workers for group in taking),
            largest_memory=max((group.memory_bytes or 0 for group in workers), default=0) or None,
            running=row[0],
            max_running=row[2],
            used_hours=row[1] / SECONDS_AN_HOUR,
            max_hours=row[3],
            abilities={group.ability: group.machine or "?" for group in taking if group.ability},
        )

    def _find_checked(self, jobs: Sequence[Job]) -> set[str]:
        """The jobs whose data is being checked now."""
        ids = [job.id for job in jobs if job.status is JobStatus.VALIDATING_FILES]
        if not ids:
            return set()
        held = select(DataCheck.job_id).where(
            DataCheck.job_id.in_(ids), DataCheck.worker_id.is_not(None)
        )
        return set(self._session.scalars(held))


def _tell(job: Job, position: int, facts: _Facts) -> str:
    if facts.alive == 0:
        return _NO_WORKER
    if facts.taking == 0:
        return _ALL_STOPPING
    if job.status is JobStatus.VALIDATING_FILES:
        return job.waiting_reason or _UNCHECKED
    return (
        _tell_limit(facts)
        or _tell_memory(job, facts)
        or tell_misfit(job, facts.abilities)
        or _tell_position(position)
    )


def _tell_limit(facts: _Facts) -> str | None:
    if facts.max_running is not None and facts.running >= facts.max_running:
        return (
            f"The project's limit of running jobs, {facts.max_running}, is reached. Its next job "
            "starts when one of them ends."
        )
    if facts.max_hours is not None and facts.used_hours >= facts.max_hours:
        return (
            f"The project has used its {facts.max_hours:g} processor hours of this month. Its jobs "
            "start in the next month, or when the operator raises the limit."
        )
    return None


def _tell_memory(job: Job, facts: _Facts) -> str | None:
    if job.waiting_reason is not None:
        return job.waiting_reason
    needed, largest = job.needed_memory_bytes, facts.largest_memory
    if needed is None or largest is None or needed <= largest:
        return None
    return (
        f"The job needs at least {needed / 1e9:.1f} GB of memory, and the largest worker has "
        f"{largest / 1e9:.1f} GB."
    )


def _tell_position(position: int) -> str:
    if position == 1:
        return _NEXT
    ahead = position - 1
    many = f"At least {ahead} jobs" if position == MAX_POSITION else f"{ahead} jobs"
    subject = "1 job of the project is" if ahead == 1 else f"{many} of the project are"
    return f"{subject} ahead in the queue."
