"""Every query on the queue: whose turn it is, and where in its project's queue a job stands.

Projects take turns. The next job is one of the project with the fewest running jobs; among equals,
of the project whose last turn is longest ago. Within a project, the highest priority is first, then
the oldest job.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    bindparam,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from app.core.clock import SECONDS_AN_HOUR
from app.core.db.base import Project, Repository, UtcDateTime
from app.core.db.project_tables import ProjectUsage, month_of
from app.core.db.tables import Job
from app.core.job.status import JobStatus

MAX_POSITION = 1000
"""Position shown for every job further back: counting a long queue would make every read slow."""

_AT_MOST = bindparam("at_most", type_=Integer)


def _count_waiting(*which: ColumnElement[bool]) -> ColumnElement[int]:
    """Count the project's queued jobs that match, up to a limit: reads a range of an index."""
    queued = select(literal(1).label("one")).where(
        Job.status == JobStatus.QUEUED, Job.project_id == bindparam("project_id"), *which
    )
    bounded = queued.limit(_AT_MOST).subquery()
    return select(func.count()).select_from(bounded).scalar_subquery()


def _turns() -> Select[str, bool]:
    """The projects that may have a job started, in the order of their turns, as `Turn` has them.

    A recursive query hops along the index from one project with queued jobs to the next. It reads
    neither the other queued jobs nor the projects that have none.
    """
    queued = select(Job.project_id).where(Job.status == JobStatus.QUEUED)
    queued = queued.order_by(Job.project_id).limit(1).correlate(None)
    first = queued.scalar_subquery().label("project_id")
    waiting = select(first).cte(recursive=True)
    later = queued.where(Job.project_id > waiting.c.project_id).correlate(waiting)
    waiting = waiting.union_all(
        select(later.scalar_subquery()).where(waiting.c.project_id.is_not(None))
    )

    its = waiting.c.project_id
    is_running = (Job.status == JobStatus.RUNNING, Job.project_id == its)
    running = select(func.count()).where(*is_running).correlate(waiting).scalar_subquery()
    its_usage = (ProjectUsage.project_id == its, ProjectUsage.month == bindparam("month"))
    used_s = select(ProjectUsage.processor_s).where(*its_usage).correlate(waiting)
    used_hours = func.coalesce(used_s.scalar_subquery(), 0.0) / SECONDS_AN_HOUR
    # Null for a project that may not start a job. One look at each project: a join could read all.
    last_turn = select(Project.last_turn).where(
        Project.id == its,
        Project.erasing_since.is_(None),
        or_(Project.max_running_jobs.is_(None), running < Project.max_running_jobs),
        or_(Project.max_processor_hours.is_(None), used_hours < Project.max_processor_hours),
    )
    last = last_turn.correlate(waiting).scalar_subquery()
    turns = select(its, running.label("running"), last.label("last")).where(its.is_not(None))
    known = turns.subquery()
    order = (known.c.running, known.c.last, known.c.project_id)
    limit = select(Project.max_running_jobs).where(Project.id == known.c.project_id)
    is_limited = limit.correlate(known).scalar_subquery().is_not(None)
    columns = select(known.c.project_id, is_limited)
    return columns.where(known.c.last.is_not(None)).order_by(*order)


# These run many times a second, so they are built only once.
_TURNS = _turns()
_FRONT = (
    select(Job.id, Job.priority)
    .where(Job.status == JobStatus.QUEUED, Job.project_id == bindparam("project_id"))
    .order_by(Job.priority.desc(), Job.id)
    .limit(_AT_MOST)
    .subquery()
)
_PLACE = func.row_number().over(order_by=(_FRONT.c.priority.desc(), _FRONT.c.id))
_NUMBERED = select(_FRONT.c.id, _PLACE.label("place")).subquery()
_PLACES = select(_NUMBERED.c.id, _NUMBERED.c.place).where(
    _NUMBERED.c.id.in_(bindparam("wanted", expanding=True))
)
"""The database counts the front of the queue: to read all of it would take most of a list."""
_POSITION = select(
    _count_waiting(Job.priority > bindparam("priority"))
    + _count_waiting(Job.priority == bindparam("priority"), Job.id <= bindparam("job_id"))
)
_IS_FREE = (
    select(Project.id)
    .where(Project.id == bindparam("whose"))
    .with_for_update(skip_locked=True, key_share=True)
)
_RUNNING = (
    select(func.count())
    .where(Job.status == JobStatus.RUNNING, Job.project_id == Project.id)
    .correlate(Project)
)
_IS_BELOW_LIMIT = select(Project.id).where(
    Project.id == bindparam("whose"), _RUNNING.scalar_subquery() < Project.max_running_jobs
)
_NEWEST_TURN = select(func.max(Project.last_turn)).scalar_subquery()
_END_TURN = (
    update(Project)
    .where(Project.id == _IS_FREE.scalar_subquery())
    .values(last_turn=_NEWEST_TURN + 1)
)

IS_QUEUED = text("jobs.status = 'queued'")
"""With the status in the text, which a database must see to use the index `ix_jobs_needs`."""
NOW = bindparam("now", type_=UtcDateTime())
_NEEDED = Job.needed_memory_bytes
_IS_WORTH_TRYING = or_(
    Job.not_before.is_(None), Job.not_before <= NOW, bindparam("free_bytes") >= _NEEDED
)
IS_CLAIMABLE = (or_(_NEEDED.is_(None), bindparam("total_bytes") >= _NEEDED), _IS_WORTH_TRYING)
"""Conditions on a queued job, by the memory of the machine that would run it."""
FIRST_CLAIMABLE = (
    select(Job.id)
    .where(
        IS_QUEUED,
        Job.project_id == bindparam("whose"),
        Job.needs == bindparam("line"),
        *IS_CLAIMABLE,
    )
    .order_by(Job.priority.desc(), Job.id)
    .limit(1)
)
NEXT_QUEUED = FIRST_CLAIMABLE.with_for_update(skip_locked=True)
"""The job that a worker claims at the turn of project `whose`, of those with these needs."""


class QueueRepository(Repository):
    """The queued jobs, each in the queue of its project."""

    def position(self, job: Job) -> int | None:
        """Return 1 for the job that runs at its project's next turn. None unless it is queued.

        At most `MAX_POSITION`.
        """
        if job.status is not JobStatus.QUEUED:
            return None
        which = {"priority": job.priority, "job_id": job.id} | _bounds(job.project_id)
        return min(self._session.scalars(_POSITION, which).one(), MAX_POSITION)

    def positions(self, jobs: Sequence[Job]) -> dict[str, int | None]:
        """Return `position` of many jobs of one project, by their ids, in one query."""
        queued = [job.id for job in jobs if job.status is JobStatus.QUEUED]
        positions: dict[str, int | None] = dict.fromkeys(job.id for job in jobs)
        if not queued:
            return positions
        which = {"wanted": queued} | _bounds(jobs[0].project_id)
        place = {row.id: row.place for row in self._session.execute(_PLACES, which)}
        return positions | {job_id: place.get(job_id, MAX_POSITION) for job_id in queued}

    def count(self) -> int:
        """Number of jobs of all projects that wait for a worker, which checks or trains them."""
        waiting = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED)
        return self._session.scalars(select(func.count()).where(Job.status.in_(waiting))).one()


@dataclass(frozen=True, slots=True)
class Turn:
    """A project that may have a job started."""

    project_id: str
    is_limited: bool
    """Whether the project has a limit of running jobs."""


class Turns(Repository):
    """Whose turn it is."""

    def is_any(self, *, now: datetime) -> bool:
        """Whether there is a job to start: one that is queued, of a project within its limits."""
        turn = self._session.scalar(_TURNS.limit(1), {"month": month_of(now)})
        return turn is not None

    def list_all(self, *, now: datetime) -> list[Turn]:
        """The projects that may have a job started, in the order of their turns."""
        rows = self._session.execute(_TURNS, {"month": month_of(now)})
        return [Turn(project_id, is_limited=is_limited) for project_id, is_limited in rows]

    def may_take(self, turn: Turn) -> bool:
        """Whether another job of the project may be started, until this transaction ends.

        On PostgreSQL, another transaction may have started a job since the turns were read. So only
        one transaction at a time starts a job of a project with a limit of running jobs. Nobody
        waits for it: the others get False meanwhile.
        """
        if not turn.is_limited:
            return True
        whose = {"whose": turn.project_id}
        if self._session.scalar(_IS_FREE, whose) is None:
            return False
        return self._session.scalar(_IS_BELOW_LIMIT, whose) is not None

    def end(self, project_id: str) -> None:
        """Record that a project has had its turn.

        On PostgreSQL another transaction may be recording a turn of the same project. That counts
        for both, so that neither waits for the other.
        """
        self._session.execute(
            _END_TURN, {"whose": project_id}, execution_options={"synchronize_session": False}
        )


def _bounds(project_id: str) -> dict[str, str | int]:
    return {"project_id": project_id, "at_most": MAX_POSITION}
