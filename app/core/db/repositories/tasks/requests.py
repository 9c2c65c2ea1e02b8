"""Every query that requests make on tasks, and on those whose time is over."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select

from app.core.db.base import ProjectRepository, Repository
from app.core.db.check_tables import Task
from app.core.db.session import lock_names


class TaskRepository(ProjectRepository):
    """The tasks of one project."""

    def find(self, checkpoint_id: str, kind: str, variant: str) -> Task | None:
        which = (Task.checkpoint_id == checkpoint_id, Task.kind == kind, Task.variant == variant)
        return self._session.scalar(self._select(Task).where(*which))

    def find_to_add(self, checkpoint_id: str, kind: str, variant: str) -> Task | None:
        """Find a task. If there is none, no other transaction adds it before this one ends."""
        lock_names(self._session, "task", checkpoint_id, kind, variant)
        return self.find(checkpoint_id, kind, variant)

    def add(self, task: Task) -> None:
        self._add(task)

    def delete(self, task_id: str) -> None:
        """Delete a task that has no files."""
        self._session.execute(self._delete(Task).where(Task.id == task_id))

    def delete_waiting(self, job_id: str, kind: str, *, keep: int) -> None:
        """Delete tasks without files that wait for a worker, but for the newest."""
        waiting = (Task.job_id == job_id, Task.kind == kind, Task.status == "queued")
        newest = self._select(Task).where(*waiting).order_by(Task.id.desc()).limit(keep)
        kept = self._session.scalars(newest.with_only_columns(Task.id)).all()
        self._session.execute(self._delete(Task).where(*waiting, Task.id.not_in(kept)))

    def list_of_job(self, job_id: str, kind: str) -> list[Task]:
        """Return the tasks of a kind on checkpoints of a job, newest first."""
        query = self._select(Task).where(Task.job_id == job_id, Task.kind == kind)
        return list(self._session.scalars(query.order_by(Task.id.desc())))

    def keep_until(self, task_id: str, moment: datetime) -> None:
        """Put off the deletion of a task that has ended."""
        ended = (Task.id == task_id, Task.expires_at.is_not(None), Task.expires_at < moment)
        self._session.execute(self._update(Task).where(*ended).values(expires_at=moment))

    def delete_of_job(self, job_id: str) -> list[str]:
        """Delete the tasks of a job. Returns the keys of the blobs to free afterwards."""
        deletion = self._delete(Task).where(Task.job_id == job_id)
        return _keys(self._session.scalars(deletion.returning(Task.files)).all())

    def delete_of_checkpoint(self, checkpoint_id: str) -> list[str]:
        """Delete the tasks on a checkpoint. Returns the keys of the blobs to free afterwards."""
        deletion = self._delete(Task).where(Task.checkpoint_id == checkpoint_id)
        return _keys(self._session.scalars(deletion.returning(Task.files)).all())


class ExpiredTasks(Repository):
    """The tasks of every project that have ended and are kept no longer."""

    def delete(self, *, now: datetime, limit: int) -> list[str]:
        """Delete them. Returns the keys of the blobs to free afterwards."""
        expired = select(Task.id).where(Task.expires_at <= now).limit(limit).scalar_subquery()
        deletion = delete(Task).where(Task.id.in_(expired), Task.expires_at <= now)
        return _keys(self._session.scalars(deletion.returning(Task.files)).all())


def _keys(files_of_tasks: Iterable[Mapping[str, Any] | None]) -> list[str]:
    return [file["key"] for files in files_of_tasks for file in (files or {}).values()]
