"""What a worker does with a task: claim it, renew its lease, record its progress and its result.

`number` is the fence, as `attempt` is for training: every write names the try it belongs to, and is
refused with LeaseLostError if that try is not the newest one or the task was deleted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select, update
from sqlalchemy.orm import aliased

from app.core.clock import steady_s
from app.core.db.base import Project, Repository, UtcDateTime
from app.core.db.check_tables import Task
from app.core.db.repositories.leases import Lease, RequestedAction, lease_of
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.recovery import MEMORY_PAUSE
from app.core.db.repositories.transitions import UNREADABLE
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt, WorkerRow
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import JobError
from app.core.job.scores.report import REPORT
from app.core.job.status import JobStatus

KEPT_FOR = timedelta(hours=24)
"""How long the files of a task are kept after they were made or last downloaded."""

FAILURE_KEPT_FOR = timedelta(minutes=10)
"""How long a failed export is kept. Afterwards, a request begins it again."""

MAX_CRASHES = 3
"""Tries that end because their process died by itself or the disk was full, after which a task
fails."""

MAX_TRIES = 10
"""Tries after which a task fails that was never crashed: it probably brings its workers down. Tries
that were given back do not count."""

_NOW = bindparam("now", type_=UtcDateTime())
_IS_FREE = (
    Task.status.in_(("queued", "running")),
    or_(Task.lease_expires_at.is_(None), Task.lease_expires_at < _NOW),
    or_(Task.not_before.is_(None), Task.not_before <= _NOW),
    Job.base_model.not_in(bindparam("failed_models", expanding=True)),
    Project.erasing_since.is_(None),
)

# These run every second, so they are built only once.
_OTHERS = aliased(Task)
_LAST = select(func.max(_OTHERS.started_at)).where(_OTHERS.project_id == Task.project_id)
_TASKS = select(Task.id).join(Project, Project.id == Task.project_id)
_FREE = _TASKS.join(Job, Job.id == Task.job_id).where(*_IS_FREE)
_NEXT = (
    _FREE.order_by(_LAST.correlate(Task).scalar_subquery().asc().nulls_first(), Task.id)
    .limit(1)
    .with_for_update(skip_locked=True, of=Task)
)
_CLAIM = (
    update(Task)
    .where(Task.id == _NEXT.scalar_subquery())
    .values(
        status="running",
        number=Task.number + 1,
        worker_id=bindparam("claimant"),
        started_at=_NOW,
        lease_expires_at=bindparam("until", type_=UtcDateTime()),
        progress=0.0,
    )
    .returning(Task)
    .execution_options(synchronize_session=False)  # this transaction has read no task before
)
_ITS_WORKER = aliased(WorkerRow)
_ITS_HOST = select(_ITS_WORKER.host).where(_ITS_WORKER.id == bindparam("claimant"))
_FELL_SHORT = (
    select(Job.id)
    .join(Attempt, and_(Attempt.job_id == Job.id, Attempt.attempt == Job.attempt))
    .join(WorkerRow, WorkerRow.id == Attempt.worker_id)
    .where(
        Job.status == JobStatus.QUEUED,
        Job.not_before > bindparam("pause_ends", type_=UtcDateTime()),
        Job.needed_memory_bytes.is_not(None),  # it is null for the memory of a GPU
        WorkerRow.host == _ITS_HOST.scalar_subquery(),
    )
    .limit(1)
)
"""A job that has found too little memory on the host of a worker, after a moment."""


@dataclass(frozen=True, slots=True)
class ClaimedTask:
    """The right to make one try at a task until the lease ends."""

    id: str
    kind: str
    variant: str
    checkpoint_id: str
    bytes: int
    """Room that is kept for its files."""
    lease: Lease
    """The job of the checkpoint. `attempt` is the number of the try."""
    request: Mapping[str, Any] | None
    """What was asked for, as `Task.request` has it."""


class TaskQueue(Repository):
    """The tasks of every project. Projects take turns, as in training.

    Args:
        failed_models: ids of base models that could not be fetched: other machines do their tasks.
    """

    def __init__(self, session: Session, failed_models: Sequence[str] = ()) -> None:
        super().__init__(session)
        self._fit: dict[str, Any] = {"failed_models": failed_models}

    def is_any(self, *, now: datetime) -> bool:
        """Whether there is a task to do."""
        return self._session.execute(_FREE.limit(1), self._fit | {"now": now}).first() is not None

    def claim(self, worker_id: str, *, now: datetime, lease_for: timedelta) -> ClaimedTask | None:
        """Give a worker the next task. Returns None if there is none to do.

        The project whose last task began longest ago is first, and in it the oldest task.
        """
        claimed_s = steady_s()
        values = self._fit | {"now": now, "claimant": worker_id, "until": now + lease_for}
        task = self._session.scalars(_CLAIM, values).one_or_none()
        if task is None:
            return None
        job = self._session.get_one(Job, task.job_id)
        lease = lease_of(job, worker_id, attempt=task.number, claimed_s=claimed_s)
        error = UNREADABLE if lease is None else None
        if task.number - task.releases > MAX_TRIES:
            error = JobError(
                code="interrupted_too_often",
                message=f"Its worker was interrupted {MAX_TRIES} times. It may need more memory "
                "than the workers have: see their logs.",
            )
        if lease is None or error is not None:
            _end(task, now=now, error=error)
            return None
        what = (task.id, task.kind, task.variant, task.checkpoint_id, task.bytes)
        return ClaimedTask(*what, lease, task.request)

    def release_orphans(self, dead_worker_ids: Collection[str]) -> None:
        """Give back the tasks of workers that have died, without waiting for their leases."""
        if dead_worker_ids:
            orphans = update(Task).where(Task.worker_id.in_(dead_worker_ids))
            self._session.execute(
                orphans.values(status="queued", worker_id=None, lease_expires_at=None)
            )


class TaskLeases(Repository):
    """The lease of one task. Every method raises LeaseLostError once it is another worker's.

    Args:
        processor_s: processor time that the try has taken, in seconds. The end of the try counts it
            as the project's.
    """

    def __init__(self, session: Session, task_id: str, *, processor_s: float = 0.0) -> None:
        super().__init__(session)
        self._task_id = task_id
        self._processor_s = processor_s

    def renew(self, lease: Lease, *, until: datetime) -> RequestedAction:
        """Extend the lease to `until`. Returns what to do, as `read_requested_action` does."""
        task = self._hold(lease)
        task.lease_expires_at = until
        return self._what_to_do(lease, task.started_at, task.not_before)

    def read_requested_action(self, lease: Lease) -> RequestedAction:
        """Return what to do: to pause if a job has found too little memory since the try began.

        Only a job on the same host counts. A task that has waited for memory before does not pause
        again, so that it is done in the end. One that is deleted loses its lease. Writes nothing.
        """
        held = select(Task.started_at, Task.not_before).where(*self._is_held(lease))
        times = self._session.execute(held).one_or_none()
        if times is None:
            raise LeaseLostError(lease.job_id, lease.attempt)
        return self._what_to_do(lease, *times)

    def progress(self, lease: Lease, fraction: float) -> None:
        """Record how much of the try is done, from 0 to 1."""
        self._hold(lease).progress = fraction

    def finish(
        self,
        lease: Lease,
        result: Mapping[str, Any],
        files: Mapping[str, Mapping[str, Any]] | None,
        *,
        now: datetime,
    ) -> None:
        """Publish what was made.

        Args:
            lease: the try.
            result: what the child reported.
            files: `key`, `bytes`, `sha256` and `crc32` of each file, by name; None for none.
            now: the time.
        """
        task = self._hold(lease)
        self._count_time(task, now)
        task.result, task.files = dict(result), None if files is None else dict(files)
        task.bytes = sum(file["bytes"] for file in (files or {}).values())
        task.progress = 1.0
        _end(task, now=now)

    def fail(self, lease: Lease, error: JobError, *, now: datetime) -> None:
        """End the task without a result."""
        task = self._hold(lease)
        self._count_time(task, now)
        _end(task, now=now, error=error)

    def crash(self, lease: Lease, what: str, *, now: datetime) -> None:
        """Give the task back after a crash, or end it if that was one crash too many.

        Args:
            lease: the try.
            what: what happened, to begin a sentence with: `The process died of SIGSEGV`.
            now: the time.
        """
        task = self._hold(lease)
        self._count_time(task, now)
        task.crashes += 1
        if task.crashes >= MAX_CRASHES:
            message = f"{what}, {task.crashes} times. The worker's log has more."
            code = "export_crashed"
            if task.kind == REPORT:
                code = "report_crashed"
            _end(task, now=now, error=JobError(code=code, message=message))
        else:
            _put_back(task)

    def release(self, lease: Lease, *, now: datetime, not_before: datetime | None = None) -> None:
        """Give the task back, so that any worker may begin it again.

        If it waits for memory, that is not before `not_before`.
        """
        task = self._hold(lease)
        self._count_time(task, now)
        task.releases += 1
        task.not_before = not_before or task.not_before
        _put_back(task)

    def _hold(self, lease: Lease) -> Task:
        query = select(Task).where(*self._is_held(lease)).with_for_update()
        options = {"populate_existing": True}
        task = self._session.scalars(query, execution_options=options).one_or_none()
        if task is None:
            raise LeaseLostError(lease.job_id, lease.attempt)
        return task

    def _is_held(self, lease: Lease) -> tuple[ColumnElement[bool], ...]:
        """The fence."""
        return (
            Task.id == self._task_id,
            Task.number == lease.attempt,
            Task.worker_id == lease.worker_id,
        )

    def _what_to_do(
        self, lease: Lease, started_at: datetime | None, not_before: datetime | None
    ) -> RequestedAction:
        assert started_at is not None  # noqa: S101 - the task is held
        if not_before is not None:
            return RequestedAction.CONTINUE
        which = {"claimant": lease.worker_id, "pause_ends": started_at + MEMORY_PAUSE}
        fell_short = self._session.scalar(_FELL_SHORT, which) is not None
        return RequestedAction.PAUSE if fell_short else RequestedAction.CONTINUE

    def _count_time(self, task: Task, now: datetime) -> None:
        usage = UsageRepository(self._session, task.project_id)
        usage.add(processor_s=self._processor_s, now=now)


def _put_back(task: Task) -> None:
    task.status, task.worker_id, task.lease_expires_at = "queued", None, None


def _end(task: Task, *, now: datetime, error: JobError | None = None) -> None:
    _put_back(task)
    task.status = "succeeded" if error is None else "failed"
    task.finished_at = now
    if task.kind != REPORT:
        task.expires_at = now + (KEPT_FOR if error is None else FAILURE_KEPT_FOR)
    if error is not None:
        task.bytes = 0
        task.error = error.model_dump(mode="json")
