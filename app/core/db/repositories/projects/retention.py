"""Deletes what a project keeps no longer: files, ended jobs and events of a certain age."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import or_, select

from app.core.db.base import Project, ProjectRepository, Repository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.tables import Event, File, Job
from app.core.errors import NotFoundError


class RetentionRepository(ProjectRepository):
    """What one project keeps, and for how long."""

    def delete_some(self, project: Project, *, now: datetime, limit: int) -> Sequence[str] | None:
        """Delete some of what is too old. None if there is nothing to delete.

        Uploaded files expire now, and are then deleted like others: once no job needs them.

        Args:
            project: the project, for how long it keeps what.
            limit: maximum number of jobs and of events.

        Returns:
            Keys of the blobs to delete after the transaction.
        """
        if project.file_retention_days is not None:
            self._expire_files(now - timedelta(days=project.file_retention_days), now=now)
        keys: list[str] | None = None
        if project.job_retention_days is not None:
            keys = self._delete_jobs(now - timedelta(days=project.job_retention_days), limit)
        if project.event_retention_days is not None:
            since = now - timedelta(days=project.event_retention_days)
            return keys or [] if self._delete_events(since, limit) else keys
        return keys

    def _expire_files(self, since: datetime, *, now: datetime) -> None:
        has_time_left = or_(File.expires_at.is_(None), File.expires_at > now)
        old = (File.job_id.is_(None), File.created_at < since, has_time_left)
        self._session.execute(self._update(File).where(*old).values(expires_at=now))

    def _delete_jobs(self, since: datetime, limit: int) -> list[str] | None:
        """Delete jobs that ended before `since`, and all they made. None if there are none."""
        jobs = JobRepository(self._session, self._project_id)
        ended = self._select(Job).where(Job.finished_at < since).order_by(Job.id).limit(limit)
        old = self._session.scalars(ended).all()
        keys: list[str] = []
        for job in old:
            with suppress(NotFoundError):  # somebody else has just deleted it
                keys += jobs.delete(job)
        return keys if old else None

    def _delete_events(self, since: datetime, limit: int) -> bool:
        """Delete events from before `since`. Returns whether there were any."""
        old = self._select(Event).where(Event.created_at < since)
        ids = old.with_only_columns(Event.id).order_by(Event.id).limit(limit)
        deletion = self._delete(Event).where(Event.id.in_(ids)).returning(Event.id)
        return bool(self._session.scalars(deletion).all())


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
