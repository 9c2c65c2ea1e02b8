"""Gives queued jobs to workers: whose turn it is, what fits, and the statement that claims."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, update
from sqlalchemy.orm import lazyload

from app.core.abilities.ability import Ability
from app.core.db.base import Repository
from app.core.db.repositories.machines.fitting import Fitting, Front, WarmModels
from app.core.db.repositories.queue import NEXT_QUEUED, NOW, Turns
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.job.status import JobStatus
from app.core.machine.memory import Memory

# One statement, so two workers can never both win: SQLite has a single writer, and PostgreSQL skips
# the row another transaction has locked (SQLite ignores FOR UPDATE). It is built only once.
_CLAIM = (
    update(Job)
    .where(Job.id == NEXT_QUEUED.scalar_subquery())
    .values(
        status=JobStatus.RUNNING,
        attempt=Job.attempt + 1,
        worker_id=bindparam("claimant"),
        started_at=func.coalesce(Job.started_at, NOW),
        lease_expires_at=bindparam("until"),
        tokens_per_second=None,
    )
    .returning(Job)
    .options(lazyload(Job.metadata_items))  # no worker reads the labels
    .execution_options(synchronize_session=False)  # this transaction has read no job before
)


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that a worker has just claimed."""

    job: Job
    is_replanned: bool
    """Whether the worker cannot execute the plan of the job, and may go on without it."""


class Claims(Repository):
    """Claims jobs for one worker. `LeaseRepository.claim` describes the arguments."""

    def __init__(
        self,
        session: Session,
        ability: Ability | None,
        memory: Memory,
        warm: WarmModels | None = None,
    ) -> None:
        super().__init__(session)
        self._ability = ability
        self._fitting = Fitting(session, ability, memory)
        self._warm = warm or WarmModels()

    def is_any(self, *, now: datetime) -> bool:
        """Whether there is a job that the worker would take. Writes nothing."""
        return not self._fitting.is_drained() and any(
            self._fitting.list_fronts(turn.project_id, now=now)
            for turn in Turns(self._session).list_all(now=now)
        )

    def take(self, worker_id: str, *, now: datetime, until: datetime, threads: int) -> Taken | None:
        """Claim a job at the first turn that has one, and begin an attempt."""
        found = self._take({"claimant": worker_id, "now": now, "until": until})
        if found is None:
            return None
        job, front = found
        is_replanned = self._ability is not None and not front.needs.is_executable(self._ability)
        self._session.add(
            Attempt(
                job_id=job.id,
                attempt=job.attempt,
                worker_id=worker_id,
                threads=threads if is_replanned else front.needs.threads or threads,
                started_at=now,
            )
        )
        return Taken(job, is_replanned)

    def _take(self, values: Mapping[str, Any]) -> tuple[Job, Front] | None:
        if self._fitting.is_drained():
            return None
        turns = Turns(self._session)
        for turn in turns.list_all(now=values["now"]):
            fronts = self._fitting.list_fronts(turn.project_id, now=values["now"])
            if not fronts or not turns.may_take(turn):
                continue
            for front in self._warm.prefer(turn.project_id, fronts):
                which = self._fitting.values | {"whose": turn.project_id, "line": front.text}
                job = self._session.scalars(_CLAIM, {**values, **which}).one_or_none()
                if job is not None:
                    turns.end(job.project_id)
                    self._warm.note(job.project_id, has_passed_over=front is not fronts[0])
                    return job, front
        return None
