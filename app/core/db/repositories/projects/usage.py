"""Every query on what a project uses: bytes, jobs, processor time and requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from app.core.db.base import ProjectRepository
from app.core.db.check_tables import DataCheck, Task
from app.core.db.project_tables import ProjectUsage, month_of
from app.core.db.session import lock_names
from app.core.db.tables import File, Job, SavedState, UploadPart
from app.core.db.worker_tables import Attempt
from app.core.job.status import JobStatus


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project uses at one moment."""

    stored_bytes: int
    """Bytes of files, parts of uploads, adapters, saved states, tokens and exports."""
    jobs: dict[JobStatus, int]
    """Number of jobs by status. Statuses without jobs are absent."""
    processor_s: float
    """Processor seconds this month, those of running attempts included."""
    requests: int
    """Requests to the API this month."""


class UsageRepository(ProjectRepository):
    """What one project uses."""

    def measure(self, *, now: datetime) -> Usage:
        """Everything that the project uses."""
        counts = self._select(Job).with_only_columns(Job.status, func.count()).group_by(Job.status)
        row = self._session.get(ProjectUsage, (self._project_id, month_of(now)))
        return Usage(
            stored_bytes=self.stored_bytes(),
            jobs={row.status: row[1] for row in self._session.execute(counts)},
            processor_s=self.processor_s(now=now),
            requests=row.requests if row else 0,
        )

    def lock_limits(self) -> None:
        """Wait for other transactions of the project that do this; lock until this one ends.

        What is measured afterwards, and found to be within a limit, is so until the transaction
        has added its own: two transactions cannot both use what is left.
        """
        lock_names(self._session, "limits", self._project_id)

    def stored_bytes(self) -> int:
        """Bytes of files, parts of uploads, adapters, saved states, tokens and exports.

        The room that is kept for an unfinished export counts as well.
        """
        sums = (
            self._select(table).with_only_columns(func.coalesce(func.sum(table.bytes), 0))
            for table in (File, UploadPart, Task)
        )
        total = sum(int(self._session.scalars(each).one()) for each in sums)
        inner_files = self._list_files(SavedState) + self._list_files(DataCheck)
        return total + sum(file["bytes"] for file in inner_files)

    def list_inner_files(self) -> list[Mapping[str, Any]]:
        """`key` and `bytes` of the files of saved states, checks and tasks, which have no rows."""
        owners = (SavedState, DataCheck, Task)
        return [file for owner in owners for file in self._list_files(owner)]

    def _list_files(self, owner: type[SavedState | DataCheck | Task]) -> list[Mapping[str, Any]]:
        kept = self._select(owner).where(owner.files.is_not(None))
        rows = self._session.scalars(kept.with_only_columns(owner.files))
        return [file for row in rows for file in (row or {}).values()]

    def count_waiting_jobs(self, at_most: int) -> int:
        """How many jobs wait for a check, in the queue or paused, counted up to a number."""
        waiting = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED)
        query = self._select(Job).where(Job.status.in_(waiting)).with_only_columns(Job.id)
        bounded = query.limit(at_most).subquery()
        return self._session.scalars(select(func.count()).select_from(bounded)).one()

    def job_seconds(self, job_id: str, *, now: datetime) -> float:
        """How long all attempts at a job have taken so far, in seconds."""
        attempts = select(Attempt).join(Job).where(Job.id == job_id)
        own = self._session.scalars(attempts.where(Job.project_id == self._project_id))
        spans = [(each.ended_at or now) - each.started_at for each in own]
        return sum(span.total_seconds() for span in spans)

    def processor_s(self, *, now: datetime) -> float:
        """Processor seconds of this month, those of running attempts included."""
        row = self._session.get(ProjectUsage, (self._project_id, month_of(now)))
        newest = (Attempt.job_id == Job.id, Attempt.attempt == Job.attempt)
        running = self._select(Job).where(Job.status == JobStatus.RUNNING, *newest)
        columns = running.with_only_columns(Attempt.started_at, Attempt.threads)
        so_far = [
            (now - started_at).total_seconds() * threads
            for started_at, threads in self._session.execute(columns)
        ]
        return sum(so_far) + (row.processor_s if row else 0.0)

    def add(self, *, processor_s: float = 0.0, requests: int = 0, now: datetime) -> None:
        """Add to what the project has used this month."""
        more = {
            "processor_s": ProjectUsage.processor_s + processor_s,
            "requests": ProjectUsage.requests + requests,
        }
        month = month_of(now)
        change = self._update(ProjectUsage).where(ProjectUsage.month == month).values(more)
        added = change.returning(ProjectUsage.month)
        if self._session.scalar(added) is not None:
            return
        lock_names(self._session, "usage", self._project_id, month)
        if self._session.scalar(added) is None:
            usage = ProjectUsage(month=month, processor_s=processor_s, requests=requests)
            self._add(usage)
