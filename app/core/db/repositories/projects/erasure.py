"""Deletes everything that belongs to a project, whatever table it is in."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from sqlalchemy import ColumnElement, Table, delete, func, select

from app.core.db.base import Base, ProjectRepository
from app.core.db.project_tables import ApiKey
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.tables import Job
from app.core.errors import NotFoundError


class ErasureRepository(ProjectRepository):
    """Everything of one project.

    A large project has more rows than one transaction should delete, so it is erased in steps:
    `delete_jobs` until no job is left, then `delete_rest`.
    """

    def revoke_keys(self, *, now: datetime) -> None:
        keys = self._update(ApiKey).where(ApiKey.revoked_at.is_(None))
        self._session.execute(keys.values(revoked_at=now))

    def count_rows(self) -> dict[str, int]:
        """Number of rows that belong to the project, by table; only tables that have some."""
        counts: dict[str, int] = {}
        for table in Base.metadata.sorted_tables:
            is_own = _is_of_project(table, self._project_id)
            if is_own is not None:
                query = select(func.count()).select_from(table).where(is_own)
                counts[table.name] = self._session.scalars(query).one()
        return {name: count for name, count in counts.items() if count}

    def delete_jobs(self, *, limit: int) -> Sequence[str] | None:
        """Delete some jobs and everything they made. None if there is no job.

        Returns:
            Keys of the blobs to delete after the transaction.
        """
        jobs = JobRepository(self._session, self._project_id)
        some = self._session.scalars(self._select(Job).order_by(Job.id).limit(limit)).all()
        keys: list[str] = []
        for job in some:
            with suppress(NotFoundError):  # somebody else has just deleted it
                keys += jobs.delete(job)
        return keys if some else None

    def delete_rest(self) -> Sequence[str]:
        """Delete all rows that are left. Returns the keys of the blobs to delete."""
        keys = self._blob_keys()
        for table in reversed(Base.metadata.sorted_tables):
            is_own = _is_of_project(table, self._project_id)
            if is_own is not None:
                self._session.execute(delete(table).where(is_own))
        return keys

    def _blob_keys(self) -> list[str]:
        keys: list[str] = []
        for table in Base.metadata.sorted_tables:
            is_own = _is_of_project(table, self._project_id)
            if is_own is not None and "blob_key" in table.c:
                keys += self._session.scalars(select(table.c.blob_key).where(is_own))
        inner_files = UsageRepository(self._session, self._project_id).list_inner_files()
        return keys + [file["key"] for file in inner_files]


def _is_of_project(table: Table, project_id: str) -> ColumnElement[bool] | None:
    """Whether a row belongs to the project, itself or through the row that it names.

    None for a table whose rows belong to no project.
    """
    if "project_id" in table.c:
        return table.c.project_id == project_id
    for key in table.foreign_keys:
        is_own = _is_of_project(key.column.table, project_id)
        if is_own is not None:
            return key.parent.in_(select(key.column).where(is_own))
    return None
