"""Which queued jobs of a project fit a worker, and which of them it takes first.

Jobs with the same needs wait in one line. A query hops over the index from the front of one line to
the front of the next, so a job that does not fit costs nothing, however many wait behind it.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Select, and_, bindparam, select

from app.core.abilities.ability import Ability
from app.core.abilities.needs import Needs
from app.core.db.base import Repository
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.queue import FIRST_CLAIMABLE, IS_CLAIMABLE, IS_QUEUED
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.machine.memory import Memory

MAX_PASSED_OVER = 4
"""How often in a row a worker takes a job whose base model it has in memory before the first job of
the project. Loading a model is then paid for by five jobs, and a first job is passed over at most
so often by each worker that it fits."""


@dataclass(frozen=True, slots=True)
class Front:
    """The first job of those with the same needs."""

    text: str
    """The needs, as the database has them."""
    needs: Needs
    priority: int
    job_id: str


@dataclass(slots=True)
class WarmModels:
    """What a worker has in memory, and how patient the jobs were that need something else."""

    base_models: Collection[str] = ()
    """Ids of the base models in memory."""
    passed_over: dict[str, int] = field(default_factory=dict[str, int])
    """How often in a row the first job was passed over, by project. Only what is not 0."""

    def prefer(self, project_id: str, fronts: list[Front]) -> list[Front]:
        """Move the first job that needs a model in memory to the top, where that is fair.

        Args:
            project_id: the project of the jobs.
            fronts: in the order of the queue.
        """
        if not fronts or self.passed_over.get(project_id, 0) >= MAX_PASSED_OVER:
            return fronts
        for front in fronts:
            if front.priority < fronts[0].priority:
                break
            if front.needs.base_model in self.base_models:
                return [front, *(each for each in fronts if each is not front)]
        return fronts

    def note(self, project_id: str, *, has_passed_over: bool) -> None:
        """Note whether the job that was taken is not the first one of its project."""
        if has_passed_over:
            self.passed_over[project_id] = self.passed_over.get(project_id, 0) + 1
        else:
            self.passed_over.pop(project_id, None)


def _fronts() -> Select[str, int, str, bool]:
    """The different needs of a project's queued jobs, each with its first job.

    Whether that job may start is one more column, not a condition: in a line of jobs that are all
    too large for the worker, a search for one that may start would read the whole line.
    """
    is_waiting = (IS_QUEUED, Job.project_id == bindparam("whose"))
    queued = select(Job.needs).where(*is_waiting).order_by(Job.needs).limit(1).correlate(None)
    lines = select(queued.scalar_subquery().label("needs")).cte(recursive=True)
    later = queued.where(Job.needs > lines.c.needs).correlate(lines)
    following = select(later.scalar_subquery()).where(lines.c.needs.is_not(None))
    lines = lines.union_all(following)
    in_line = (*is_waiting, Job.needs == lines.c.needs)
    first = select(Job.id).where(*in_line).order_by(Job.priority.desc(), Job.id).limit(1)
    first_id = first.correlate(lines).scalar_subquery()
    fronts = select(lines.c.needs, first_id.label("job_id")).where(lines.c.needs.is_not(None))
    found = fronts.subquery()
    # One look at each job: a join could read them all.
    its = select(Job.priority).where(Job.id == found.c.job_id).correlate(found)
    may_start = its.with_only_columns(and_(*IS_CLAIMABLE)).scalar_subquery()
    columns = (found.c.needs, its.scalar_subquery(), found.c.job_id, may_start)
    return select(*columns).where(found.c.job_id.is_not(None))


_FRONTS = _fronts()
_FIRST_CLAIMABLE = FIRST_CLAIMABLE.add_columns(Job.priority)


class Fitting(Repository):
    """Looks for jobs that fit one worker.

    Args:
        ability: what the worker can do. None for one that takes any job.
    """

    def __init__(self, session: Session, ability: Ability | None, memory: Memory) -> None:
        super().__init__(session)
        self._ability = ability
        self._memory = memory
        self._living: list[Ability] | None = None

    @property
    def values(self) -> dict[str, int]:
        """What a query on claimable jobs is told of the worker's machine."""
        return {"total_bytes": self._memory.total, "free_bytes": self._memory.free}

    def is_drained(self) -> bool:
        """Whether the worker's machine takes nothing."""
        return self._ability is not None and Drains(self._session).is_drained(self._ability.machine)

    def list_fronts(self, project_id: str, *, now: datetime) -> list[Front]:
        """The first jobs of the project that fit the worker, in the order of the queue."""
        values = self.values | {"whose": project_id, "now": now}
        fronts: list[Front] = []
        for text, priority, job_id, is_claimable in self._session.execute(_FRONTS, values).all():
            needs = Needs.parse(text)
            if not self._fits(needs, now=now):
                continue
            first = (job_id, priority)
            if not is_claimable:  # it waits for memory, or needs a little more than there is
                first = self._session.execute(_FIRST_CLAIMABLE, values | {"line": text}).first()
            if first is not None:
                fronts.append(Front(text, needs, first[1], first[0]))
        return sorted(fronts, key=lambda front: (-front.priority, front.job_id))

    def _fits(self, needs: Needs, *, now: datetime) -> bool:
        if not needs.may_fit(self._memory):
            return False
        if self._ability is None:
            return True
        if not self._ability.has_model(needs.base_model):
            return False
        if needs.is_executable(self._ability):
            return True
        if not needs.may_be_replanned(self._ability):
            return False
        if self._living is None:
            self._living = WorkerRepository(self._session).list_abilities(now=now)
        return not any(needs.is_executable(other) for other in self._living)
