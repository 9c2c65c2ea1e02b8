"""Every query on workers: who runs, on which host, at what, and when its last heartbeat was."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    exists,
    func,
    null,
    select,
    union_all,
    update,
)

from app.core.abilities.ability import Ability
from app.core.db.base import Repository
from app.core.db.check_tables import DataCheck
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt, WorkerRow
from app.core.job.child.training_events import JobError
from app.core.job.estimate import Estimate
from app.core.job.status import JobStatus
from app.core.version import VERSION

SILENT_AFTER = timedelta(seconds=30)
"""Age of a heartbeat after which its worker no longer counts as alive: three were missed."""
KEPT_FOR = timedelta(days=1)
"""Age of a heartbeat after which its row is deleted: longer than any lease."""

_TRAININGS = (
    select(Job.worker_id, Job.id, Job.project_id, Attempt.started_at, Attempt.threads)
    .join(Attempt, and_(Attempt.job_id == Job.id, Attempt.attempt == Job.attempt))
    .where(Job.status == JobStatus.RUNNING)
)
_CHECKS = select(
    DataCheck.worker_id, DataCheck.job_id, DataCheck.project_id, DataCheck.started_at, null()
).where(DataCheck.worker_id.is_not(None))
_TASKS = union_all(_TRAININGS, _CHECKS)
"""Id of the worker and the fields of a `WorkerTask`, of every job that a worker holds."""

_COUNT_RUNNING = select(func.count()).where(Job.status == JobStatus.RUNNING)
_HAS_JOB = exists().where(Job.worker_id == WorkerRow.id, Job.status == JobStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """A worker and its process, so that other workers on the host can see whether it died."""

    worker_id: str
    host: str
    """Identifies the machine, its current boot, and the process namespace that `pid` belongs to."""
    pid: int
    process_started: int
    """When the kernel started the process, in clock ticks since boot: pids are used again."""


class WorkerState(StrEnum):
    IDLE = "idle"
    CHECKING = "checking"
    """It checks the data of a job, and trains none."""
    RUNNING = "running"
    """It trains a job, and may check the data of another one."""
    DRAINING = "draining"
    """It was told to stop, and takes no more jobs."""


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker does for a job."""

    job_id: str
    project_id: str
    started_at: datetime
    threads: int | None
    """CPU threads of the training. None while only the data of the job is checked."""

    @property
    def activity(self) -> Literal["training", "checking_data"]:
        return "training" if self.threads else "checking_data"


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many workers share the database."""

    living: int = 1
    """Workers with a recent heartbeat."""
    idle: int = 1
    """Those of them that train nothing."""


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Workers that can do the same."""

    ability: Ability | None
    """None for workers of another version."""
    is_stopping: bool
    """Whether they have been told to stop."""
    workers: int
    """Number of them."""
    machine: str | None
    """Name of the machine of one of them. None for workers of an earlier version."""
    memory_bytes: int | None
    """Memory of the largest of their machines or containers. None if none says how much."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What the database knows about a worker."""

    identity: WorkerIdentity
    version: str
    """Version of Tunery that it runs."""
    memory_bytes: int | None
    """Memory of its machine or container. None for a worker of an earlier version."""
    started_at: datetime
    heartbeat_at: datetime
    stopping_at: datetime | None
    """When it was told to stop. None if it was not."""
    tasks: tuple[WorkerTask, ...]
    machine: str | None = None
    """Name of its machine. None for a worker of an earlier version."""
    ability: Ability | None = None
    """What it can do. None for a worker of another version."""
    models_in_memory: tuple[str, ...] = ()
    """Ids of the base models that it has in memory."""
    silent_since: datetime | None = None
    """When it was noticed that heartbeats are missing. None for a worker that lives."""

    @property
    def state(self) -> WorkerState:
        if self.stopping_at is not None:
            return WorkerState.DRAINING
        if any(task.activity == "training" for task in self.tasks):
            return WorkerState.RUNNING
        return WorkerState.CHECKING if self.tasks else WorkerState.IDLE

    def is_silent(self, *, now: datetime) -> bool:
        return now - self.heartbeat_at > SILENT_AFTER


class WorkerRepository(Repository):
    def beat(
        self,
        worker: WorkerIdentity,
        *,
        now: datetime,
        is_stopping: bool = False,
        memory_bytes: int | None = None,
        machine: str | None = None,
        ability: Ability | None = None,
        models_in_memory: Collection[str] = (),
    ) -> None:
        """Record a heartbeat. The first one registers the worker.

        Args:
            memory_bytes: memory of its machine or container, free or not.
            machine: name of its machine. Not needed with an ability, which has it.
            ability: what the worker can do now.
            models_in_memory: ids of the base models that it has in memory.
        """
        row = self._session.get(WorkerRow, worker.worker_id)
        if row is None:
            row = WorkerRow(
                id=worker.worker_id,
                host=worker.host,
                pid=worker.pid,
                process_started=worker.process_started,
                version=VERSION,
                memory_bytes=memory_bytes,
                started_at=now,
            )
            self._session.add(row)
        row.heartbeat_at, row.silent_since = now, None
        row.machine = ability.machine if ability else machine
        row.ability = ability and ability.model_dump_json(exclude={"machine"})
        row.models_in_memory = list(models_in_memory)
        row.stopping_at = (row.stopping_at or now) if is_stopping else None

    def list_all(self) -> list[WorkerStatus]:
        """Every registered worker, the oldest first, whether or not it still lives."""
        tasks: dict[str | None, tuple[WorkerTask, ...]] = {}
        for worker_id, job_id, project_id, started_at, threads in self._session.execute(_TASKS):
            task = WorkerTask(job_id, project_id, started_at, threads)
            tasks[worker_id] = (*tasks.get(worker_id, ()), task)
        rows = self._session.scalars(select(WorkerRow).order_by(WorkerRow.id))
        return [_status_of(row, tasks.get(row.id, ())) for row in rows]

    def count_alive(self, *, now: datetime) -> int:
        """Number of workers with a recent heartbeat."""
        alive = WorkerRow.heartbeat_at >= now - SILENT_AFTER
        return self._session.scalars(select(func.count()).where(alive)).one()

    def count_crowd(self, *, now: datetime) -> Crowd:
        """Count the living workers, and those of them that train nothing."""
        living = self.count_alive(now=now)
        return Crowd(living, idle=living - self._session.scalars(_COUNT_RUNNING).one())

    def is_any_falling_silent(self, *, now: datetime) -> bool:
        """Whether a worker is silent and that is not noted yet."""
        query = select(WorkerRow.id).where(*_is_falling_silent(now)).limit(1)
        return self._session.scalar(query) is not None

    def note_silent(self, *, now: datetime) -> None:
        """Note which workers have fallen silent, so that nobody else has to know the time."""
        silent = update(WorkerRow).where(*_is_falling_silent(now)).values(silent_since=now)
        self._session.execute(silent)

    def list_abilities(self, *, now: datetime) -> list[Ability]:
        """What the living workers can do that take jobs, without repetitions."""
        takes_jobs = (WorkerRow.heartbeat_at >= now - SILENT_AFTER, WorkerRow.stopping_at.is_(None))
        known = select(WorkerRow.ability).where(*takes_jobs, WorkerRow.ability.is_not(None))
        return [*filter(None, map(Ability.read, self._session.scalars(known.distinct())))]

    def list_groups(self) -> list[WorkerGroup]:
        """The workers that are not known to be silent."""
        is_stopping = WorkerRow.stopping_at.is_not(None)
        machine, largest = func.min(WorkerRow.machine), func.max(WorkerRow.memory_bytes)
        groups = select(WorkerRow.ability, is_stopping, func.count(), machine, largest)
        alive = groups.where(WorkerRow.silent_since.is_(None))
        rows = self._session.execute(alive.group_by(WorkerRow.ability, is_stopping))
        return [WorkerGroup(Ability.read(row[0]), row[1], row[2], row[3], row[4]) for row in rows]

    def largest_memory(self) -> int | None:
        """Memory of the registered worker that has most. None if no worker says how much it has."""
        return self._session.scalars(select(func.max(WorkerRow.memory_bytes))).one()

    def admit(self, job: Job, estimate: Estimate) -> JobError | None:
        """Let only workers take a job that have enough memory for it.

        Returns:
            The error of a job that needs more than any registered worker has.
        """
        needed_bytes = job.needed_memory_bytes = estimate.least_memory_bytes
        largest = self.largest_memory()
        if largest is None or needed_bytes <= largest:
            return None
        return JobError(
            code="not_enough_memory",
            message=f"The job needs at least {needed_bytes / 1e9:.1f} GB of memory, and the "
            f"largest worker has {largest / 1e9:.1f} GB. {' '.join(estimate.advice)}",
            param="hyperparameters.context_length",
        )

    def find_dead(self, host: str, is_alive: Callable[[WorkerIdentity], bool]) -> list[str]:
        """Ids of the workers of this host whose process has ended, whatever their heartbeat says.

        Args:
            host: see `WorkerIdentity`.
            is_alive: whether that very process still runs.
        """
        rows = self._session.scalars(select(WorkerRow).where(WorkerRow.host == host))
        return [row.id for row in rows if not is_alive(_identity_of(row))]

    def remove(self, worker_ids: Collection[str]) -> None:
        """Delete the rows of workers that have ended, except where a job must still be requeued."""
        ended = WorkerRow.id.in_(worker_ids)
        self._session.execute(delete(WorkerRow).where(ended, ~_HAS_JOB))

    def remove_silent(self, *, now: datetime) -> None:
        """Delete the rows of workers without a heartbeat for `KEPT_FOR`.

        A worker that was only suspended registers again when it wakes.
        """
        self._session.execute(delete(WorkerRow).where(WorkerRow.heartbeat_at < now - KEPT_FOR))

    def remove_all(self) -> None:
        """Delete every row: no worker of a restored database still runs."""
        self._session.execute(delete(WorkerRow))


def _is_falling_silent(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return WorkerRow.heartbeat_at < now - SILENT_AFTER, WorkerRow.silent_since.is_(None)


def _identity_of(row: WorkerRow) -> WorkerIdentity:
    return WorkerIdentity(row.id, row.host, row.pid, row.process_started)


def _status_of(row: WorkerRow, tasks: tuple[WorkerTask, ...]) -> WorkerStatus:
    return WorkerStatus(
        _identity_of(row),
        row.version,
        row.memory_bytes,
        row.started_at,
        row.heartbeat_at,
        row.stopping_at,
        tasks,
        machine=row.machine,
        ability=Ability.read(row.ability),
        models_in_memory=tuple(row.models_in_memory or ()),
        silent_since=row.silent_since,
    )
