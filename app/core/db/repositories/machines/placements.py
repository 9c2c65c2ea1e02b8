"""Every query on attempts that one process claims and another one runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from sqlalchemy import case, select, update

from app.core.clock import steady_s
from app.core.db.base import Repository
from app.core.db.repositories.leases import Lease, lease_of
from app.core.db.tables import Job
from app.core.db.worker_tables import WorkerRow
from app.core.errors import LeaseLostError
from app.core.job.frozen import Frozen
from app.core.job.status import JobStatus


class Ticket(Frozen):
    """Names a claimed attempt, for the process that will run it. There is nothing secret in it."""

    job_id: str
    attempt: int
    worker_id: str
    is_replanned: bool

    @classmethod
    def of(cls, lease: Lease) -> Self:
        return cls.model_validate(lease, from_attributes=True)


@dataclass(frozen=True, slots=True)
class JobSize:
    """What a job takes of a machine."""

    memory_bytes: int
    threads: int | None
    """CPU threads. None for those of any new job."""


class Placements(Repository):
    """Attempts of all projects, on their way from the process that claimed them to another one."""

    def take_over(self, ticket: Ticket, *, until: datetime) -> Lease:
        """Return the lease, extended to `until`.

        The caller registers the worker in the same transaction, so that only one process succeeds.

        Raises:
            LeaseLostError: the job is no longer this attempt's, or another process runs it.
        """
        claimed_s = steady_s()
        query = (
            update(Job)
            .where(
                Job.id == ticket.job_id,
                Job.attempt == ticket.attempt,
                Job.worker_id == ticket.worker_id,
                Job.status == JobStatus.RUNNING,
            )
            .values(lease_expires_at=until)
            .returning(Job)
        )
        job = self._session.scalars(query).one_or_none()
        # Only now, as another process that has just succeeded had locked the job until then.
        if self._session.get(WorkerRow, ticket.worker_id) is not None:
            raise LeaseLostError(ticket.job_id, ticket.attempt)
        lease = job and lease_of(job, ticket.worker_id, attempt=ticket.attempt, claimed_s=claimed_s)
        if lease is None:
            raise LeaseLostError(ticket.job_id, ticket.attempt)
        return replace(lease, is_replanned=ticket.is_replanned)

    def is_taken_over(self, lease: Lease) -> bool:
        """Whether the process that is to run the attempt has registered its worker."""
        return self._session.get(WorkerRow, lease.worker_id) is not None

    def list_sizes(self, *, limit: int) -> Sequence[JobSize]:
        """What running jobs take, and queued ones will: those that run first, then the queue."""
        is_running = Job.status == JobStatus.RUNNING
        query = (
            select(Job.needed_memory_bytes, Job.plan)
            .where(Job.status.in_((JobStatus.RUNNING, JobStatus.QUEUED)))
            .order_by(case((is_running, 0), else_=1), Job.priority.desc(), Job.id)
            .limit(limit)
        )
        return [
            JobSize(memory_bytes or 0, int(plan["threads"]) if plan else None)
            for memory_bytes, plan in self._session.execute(query)
        ]
