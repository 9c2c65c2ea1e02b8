"""What a worker does with the data check of a job: claim it, renew its lease, record its result.

`number` is the fence, as `attempt` is for training: every write names the try it belongs to, and is
refused with LeaseLostError if that try is not the newest one or the job waits for no check.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, func, or_, select, update
from sqlalchemy.orm import aliased

from app.core.clock import steady_s
from app.core.db.base import Project, Repository, UtcDateTime
from app.core.db.check_tables import DataCheck
from app.core.db.installation.fence import require_store
from app.core.db.repositories.base_models.stored import FETCH_PAUSE
from app.core.db.repositories.events import EventRepository, Level
from app.core.db.repositories.leases import Lease, RequestedAction, lease_of
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.sweeps.shared_checks import IS_FIRST, list_sharers
from app.core.db.repositories.transitions import UNREADABLE, lock_job, settle
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.tables import File, Job
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import JobError
from app.core.job.estimate import Estimate
from app.core.job.loss_log import MAX_COUNT
from app.core.job.status import JobStatus

MAX_CRASHES = 3
"""Tries that end because their process died by itself, after which the job fails."""

_NO_OTHERS: Mapping[str, Estimate] = MappingProxyType({})
_Query = TypeVar("_Query", bound=Select[*tuple[Any, ...]])

_NOW = bindparam("now", type_=UtcDateTime())
_IS_WAITING = Job.status == JobStatus.VALIDATING_FILES
_IS_FREE = (
    _IS_WAITING,
    or_(DataCheck.lease_expires_at.is_(None), DataCheck.lease_expires_at < _NOW),
    or_(DataCheck.not_before.is_(None), DataCheck.not_before <= _NOW),
    Job.created_at <= bindparam("created_before", type_=UtcDateTime()),
    File.bytes <= bindparam("max_bytes", type_=BigInteger()),
    Job.base_model.not_in(bindparam("failed_models", expanding=True)),
    Project.erasing_since.is_(None),
    IS_FIRST,
)


def _free(checks: _Query) -> _Query:
    """Those of the selected checks that a worker may take."""
    jobs = checks.join_from(DataCheck, Job, Job.id == DataCheck.job_id)
    jobs = jobs.join(Project, Project.id == Job.project_id)
    return jobs.join(File, File.id == Job.training_file_id).where(*_IS_FREE)


# These run many times a second, so they are built only once.
_OTHERS = aliased(DataCheck)
_LAST = select(func.max(_OTHERS.started_at)).where(_OTHERS.project_id == Job.project_id)
_WAITING = _free(select(Job.project_id, _LAST.correlate(Job).scalar_subquery())).distinct()
_NEXT = (
    _free(select(DataCheck.job_id))
    .where(Job.project_id == bindparam("whose"))
    .order_by(Job.priority.desc(), Job.id)
    .limit(1)
    .with_for_update(skip_locked=True, of=DataCheck)
)
_CLAIM = (
    update(DataCheck)
    .where(DataCheck.job_id == _NEXT.scalar_subquery())
    .values(
        number=DataCheck.number + 1,
        worker_id=bindparam("claimant"),
        started_at=_NOW,
        lease_expires_at=bindparam("until", type_=UtcDateTime()),
    )
    .returning(DataCheck)
    .execution_options(synchronize_session=False)  # this transaction has read no check before
)


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """Which checks a worker takes."""

    created_before: datetime
    """The job was created then or earlier."""
    max_bytes: int = MAX_COUNT
    """Maximum size of the training file."""
    failed_models: Sequence[str] = ()
    """Ids of base models that could not be fetched: other machines do their checks."""


class DataCheckRepository(Repository):
    """The data checks of every project. They take turns by project, as training does."""

    def claim(
        self, worker_id: str, limits: CheckLimits, *, now: datetime, lease_for: timedelta
    ) -> Lease | None:
        """Give a worker the next check. Returns None if there is none to do.

        The project whose last check began longest ago is first. In it, the highest priority is
        first, and among equals the oldest job. `attempt` of the lease is the number of the try.
        """
        claimed_s = steady_s()
        for project_id in self._projects(limits, now=now):
            values = {"whose": project_id, "claimant": worker_id, "until": now + lease_for}
            values |= self._values(limits, now=now)
            check = self._session.scalars(_CLAIM, values).one_or_none()
            if check is not None:
                break
        else:
            return None
        job = self._session.get_one(Job, check.job_id)
        lease = lease_of(job, worker_id, attempt=check.number, claimed_s=claimed_s)
        if lease is None:  # otherwise no worker would ever reach the jobs behind it
            waiting = lock_job(self._session, Job.id == job.id, _IS_WAITING)
            if waiting is not None:
                settle(self._session, waiting, JobStatus.FAILED, now=now, error=UNREADABLE)
        return lease

    def is_any(self, limits: CheckLimits, *, now: datetime) -> bool:
        """Whether there is a check to do."""
        free = self._session.execute(_WAITING.limit(1), self._values(limits, now=now))
        return free.first() is not None

    def renew(self, lease: Lease, *, until: datetime) -> RequestedAction:
        """Extend the lease to `until`. Returns what the user has asked: always to go on.

        A pause waits for the end of the check, and a cancelled job loses its lease.

        Raises:
            LeaseLostError: the check is no longer this worker's, or its job is cancelled.
        """
        self.hold(lease)
        self._update(lease, lease_expires_at=until)
        return RequestedAction.CONTINUE

    def read_requested_action(self, lease: Lease) -> RequestedAction:
        """Return what the user has asked, as `renew` does. Writes nothing.

        Raises:
            LeaseLostError: the check is no longer this worker's, or its job is cancelled.
        """
        held = select(DataCheck.job_id).join(Job, Job.id == DataCheck.job_id)
        if self._session.scalar(held.where(*_is_held(lease), _IS_WAITING)) is None:
            raise LeaseLostError(lease.job_id, lease.attempt)
        return RequestedAction.CONTINUE

    def hold(self, lease: Lease) -> Job:
        """Lock the job and make the rest of this transaction conditional on still owning it.

        Raises:
            LeaseLostError: the check is no longer this worker's, or its job is cancelled.
        """
        job = lock_job(self._session, Job.id == lease.job_id, _IS_WAITING)
        if job is None:
            raise LeaseLostError(lease.job_id, lease.attempt)
        self.read_requested_action(lease)
        return job

    def finish(
        self,
        lease: Lease,
        report: Mapping[str, Any] | None,
        files: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        estimate: Estimate | None = None,
        others: Mapping[str, Estimate] = _NO_OTHERS,
        error: JobError | None = None,
        now: datetime,
    ) -> None:
        """Record the report. The job fails, is queued, or is paused if its user asked for that.

        So are the other jobs of a sweep that wait for the same check.

        Args:
            lease: the check.
            report: a `DataReport` as JSON. None if the check found out nothing.
            files: `key`, `bytes` and `sha256` of each file of tokens, by name.
            estimate: what the job takes. It fails if no worker has enough memory.
            others: the same for these other jobs, by their ids.
            error: why the data is refused.

        Raises:
            LeaseLostError: the check is no longer this worker's, or its job is cancelled.
        """
        require_store(self._session)
        job = self.hold(lease)
        self._end_try(lease, now=now, report=report, files=files, finished_at=now)
        self._settle(job, estimate, error, now=now)
        for sharer in list_sharers(self._session, job.id, for_update=True):
            its_own = others.get(sharer.id)
            check = self._session.get_one(DataCheck, sharer.id)
            shown = {"estimate": its_own and its_own.model_dump(mode="json")}
            check.finished_at, check.report = now, None if report is None else {**report, **shown}
            self._settle(sharer, its_own, error, now=now, checked_with=job.id)

    def _settle(
        self,
        job: Job,
        estimate: Estimate | None,
        error: JobError | None,
        *,
        now: datetime,
        checked_with: str | None = None,
    ) -> None:
        """Move a job on whose data is checked."""
        job.waiting_reason = None
        if estimate is not None and error is None:
            error = WorkerRepository(self._session).admit(job, estimate)
        move = partial(settle, self._session, job, now=now)
        validated = f"Files validated with {checked_with}" if checked_with else "Files validated"
        if error is not None:
            move(JobStatus.FAILED, error=error)
        elif job.pause_requested_at is not None:
            move(JobStatus.PAUSED, message=f"{validated}, paused until it is resumed")
        else:
            move(JobStatus.QUEUED, message=f"{validated}, moving job to queued state")

    def release(self, lease: Lease, *, now: datetime, waits_for: str | None = None) -> None:
        """Give the check back. Any worker may begin it again, after a moment if it `waits_for`.

        Raises:
            LeaseLostError: the check is no longer this worker's, or its job is cancelled.
        """
        self.hold(lease).waiting_reason = waits_for
        self._end_try(lease, now=now, not_before=waits_for and now + FETCH_PAUSE)

    def crash(self, lease: Lease, what: str, *, now: datetime) -> None:
        """Give the check back after its process died, or fail the job after too many times.

        Args:
            lease: the check.
            what: what happened, to begin a sentence with: `The process died of SIGSEGV`.

        Raises:
            LeaseLostError: the check is no longer this worker's, or its job is cancelled.
        """
        job = self.hold(lease)
        crashes = self._end_try(lease, now=now, crashes=DataCheck.crashes + 1).crashes
        if crashes >= MAX_CRASHES:
            error = JobError(
                code="data_check_crashed",
                message=f"{what} while it checked the data, {crashes} times. The worker's log has "
                "more. Rerun the job; if it fails again, make the longest examples shorter.",
                param="training_file",
            )
            for each in (job, *list_sharers(self._session, job.id, for_update=True)):
                settle(self._session, each, JobStatus.FAILED, now=now, error=error)
        else:
            self.note(lease, f"{what}; the data will be checked again", now=now, level="warn")

    def note(self, lease: Lease, message: str, *, now: datetime, level: Level = "info") -> None:
        """Add an event that tells the user something."""
        events = EventRepository(self._session, lease.project_id)
        events.add(lease.job_id, message, now=now, level=level)

    def release_orphans(self, dead_worker_ids: Collection[str]) -> None:
        """Give back the checks of workers that have died, without waiting for their leases."""
        if dead_worker_ids:
            orphans = update(DataCheck).where(DataCheck.worker_id.in_(dead_worker_ids))
            self._session.execute(orphans.values(worker_id=None, lease_expires_at=None))

    def _projects(self, limits: CheckLimits, *, now: datetime) -> list[str]:
        """The projects that have a check to do, the one first whose last began longest ago."""
        rows = self._session.execute(_WAITING, self._values(limits, now=now)).all()
        never = datetime.min.replace(tzinfo=UTC)
        in_turn = sorted(rows, key=lambda row: row[1] or never)
        return [project_id for project_id, _ in in_turn]

    def _values(self, limits: CheckLimits, *, now: datetime) -> dict[str, Any]:
        return {"now": now} | asdict(limits)

    def _end_try(self, lease: Lease, *, now: datetime, **values: Any) -> DataCheck:
        """End the try, and count the time that it took as the project's."""
        check = self._update(lease, worker_id=None, lease_expires_at=None, **values)
        if check.started_at is not None:
            seconds = max(0.0, (now - check.started_at).total_seconds())
            UsageRepository(self._session, lease.project_id).add(processor_s=seconds, now=now)
        return check

    def _update(self, lease: Lease, **values: Any) -> DataCheck:
        change = update(DataCheck).where(*_is_held(lease)).values(values).returning(DataCheck)
        return self._session.scalars(change, execution_options={"populate_existing": True}).one()


def _is_held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    """The fence."""
    return (
        DataCheck.job_id == lease.job_id,
        DataCheck.number == lease.attempt,
        DataCheck.worker_id == lease.worker_id,
    )
