"""Every query on the queue, which the jobs of all projects share."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Integer, bindparam, func, literal, select

from app.core.db.base import Repository
from app.core.db.tables import Job
from app.core.job.status import JobStatus

MAX_POSITION = 1000
"""Position shown for every job further back: counting a long queue would make every read slow."""

_AT_MOST = bindparam("at_most", type_=Integer)


def _count_waiting(*which: ColumnElement[bool]) -> ColumnElement[int]:
    """Count the queued jobs that match, up to a limit: reads a range of `ix_jobs_queue`."""
    queued = select(literal(1).label("one")).where(Job.status == JobStatus.QUEUED, *which)
    bounded = queued.limit(_AT_MOST).subquery()
    return select(func.count()).select_from(bounded).scalar_subquery()


# These run many times a second, so they are built only once.
_POSITION = select(
    _count_waiting(Job.priority > bindparam("priority"))
    + _count_waiting(Job.priority == bindparam("priority"), Job.id <= bindparam("job_id"))
)
_FRONT = (
    select(Job.id)
    .where(Job.status == JobStatus.QUEUED)
    .order_by(Job.priority.desc(), Job.id)
    .limit(_AT_MOST)
)


class QueueRepository(Repository):
    """The queued jobs of every project."""

    def position(self, job: Job) -> int | None:
        """Return 1 for the job that runs next. None unless the job is queued.

        At most `MAX_POSITION`.
        """
        if job.status is not JobStatus.QUEUED:
            return None
        which = {"priority": job.priority, "job_id": job.id, "at_most": MAX_POSITION}
        return min(self._session.scalars(_POSITION, which).one(), MAX_POSITION)

    def positions(self, jobs: Sequence[Job]) -> dict[str, int | None]:
        """Return `position` of many jobs, by their ids, in one query."""
        queued = [job.id for job in jobs if job.status is JobStatus.QUEUED]
        front = self._session.scalars(_FRONT, {"at_most": MAX_POSITION}) if queued else ()
        place = {job_id: number for number, job_id in enumerate(front, start=1)}
        positions: dict[str, int | None] = dict.fromkeys(job.id for job in jobs)
        return positions | {job_id: place.get(job_id, MAX_POSITION) for job_id in queued}

    def count(self) -> int:
        queued = select(func.count()).where(Job.status == JobStatus.QUEUED)
        return self._session.scalars(queued).one()

    def is_empty(self) -> bool:
        query = select(Job.id).where(Job.status == JobStatus.QUEUED).limit(1)
        return self._session.scalar(query) is None
