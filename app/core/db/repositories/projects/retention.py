"""Finds and deletes what a project keeps no longer: files, jobs and events of a certain age.

Rows are found in a transaction that only reads, and deleted by their ids in one that writes. So a
project with much to look through keeps nobody from writing.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import aliased

from app.core.db.base import Project, ProjectRepository, Repository
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.tables import Checkpoint, Event, File, Job
from app.core.errors import NotFoundError
from app.core.job.status import UNFINISHED


class RetentionRepository(ProjectRepository):
    """What one project keeps, and for how long."""

    def find_files(self, since: datetime, *, now: datetime, limit: int) -> Sequence[str]:
        """Ids of files that were uploaded before `since` and have not expired."""
        has_time_left = or_(File.expires_at.is_(None), File.expires_at > now)
        old = (File.job_id.is_(None), File.created_at < since, has_time_left)
        ids = self._select(File).where(*old).with_only_columns(File.id)
        return self._session.scalars(ids.order_by(File.id).limit(limit)).all()

    def find_jobs(self, since: datetime, *, limit: int) -> Sequence[str]:
        """Ids of jobs that ended before `since`, and whose adapters no unfinished job continues."""
        successor = aliased(Job)
        continued = self._select(Checkpoint).join(
            successor, successor.parent_checkpoint_id == Checkpoint.id
        )
        is_needed = (successor.status.in_(UNFINISHED), successor.project_id == self._project_id)
        needed = continued.where(*is_needed).with_only_columns(Checkpoint.job_id)
        old = self._select(Job).where(Job.finished_at < since, Job.id.not_in(needed))
        ids = old.with_only_columns(Job.id).order_by(Job.id).limit(limit)
        return self._session.scalars(ids).all()

    def find_events(self, since: datetime, *, limit: int) -> Sequence[str]:
        """Ids of events from before `since`."""
        ids = self._select(Event).where(Event.created_at < since).with_only_columns(Event.id)
        return self._session.scalars(ids.order_by(Event.created_at).limit(limit)).all()

    def expire_files(self, file_ids: Sequence[str], *, now: datetime) -> None:
        """Let files expire now. They are deleted like others: once no job needs them."""
        old = self._update(File).where(File.id.in_(file_ids))
        self._session.execute(old.values(expires_at=now))

    def delete_jobs(self, job_ids: Sequence[str]) -> list[str]:
        """Delete jobs and all they made. Returns keys of the blobs to delete afterwards.

        A job whose adapter is continued by a job that was just created stays.
        """
        jobs = JobRepository(self._session, self._project_id)
        checkpoints = CheckpointRepository(self._session, self._project_id)
        keys: list[str] = []
        for job in self._session.scalars(self._select(Job).where(Job.id.in_(job_ids))).all():
            if checkpoints.lock_to_delete(job.id):
                continue
            with suppress(NotFoundError):  # somebody else has just deleted it
                keys += jobs.delete(job)
        return keys

    def delete_events(self, event_ids: Sequence[str]) -> None:
        self._session.execute(self._delete(Event).where(Event.id.in_(event_ids)))


class RetainingProjects(Repository):
    """The projects that keep something for a limited time."""

    def list_all(self) -> Sequence[Project]:
        limits = (
            Project.file_retention_days,
            Project.job_retention_days,
            Project.event_retention_days,
        )
        is_limited = or_(*(limit.is_not(None) for limit in limits))
        return self._session.scalars(select(Project).where(is_limited)).all()
