"""Every query on projects and their API keys."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, or_, select, update

from app.core.db.base import Page, Project, Repository
from app.core.db.project_tables import ApiKey
from app.core.errors import NotFoundError


class ProjectsRepository(Repository):
    """All projects."""

    def add(self, project: Project) -> None:
        self._session.add(project)
        self._session.flush()

    def find(self, name: str) -> Project | None:
        """The project with this name or this id, or None."""
        by_id = self._session.get(Project, name)
        return by_id or self._session.scalar(select(Project).where(Project.name == name))

    def get(self, name: str) -> Project:
        """The project with this name or this id.

        Raises:
            NotFoundError: there is none.
        """
        project = self.find(name)
        if project is None:
            raise NotFoundError(f"No such project: {name:.80}", code="project_not_found")
        return project

    def delete(self, project: Project) -> None:
        """Delete a project that has no rows in any other table."""
        self._session.delete(project)
        self._session.flush()

    def list_all(self) -> Sequence[Project]:
        """Every project, in the order of their names."""
        return self._session.scalars(select(Project).order_by(Project.name)).all()


class KeyRepository(Repository):
    """The keys of all projects: a request has its key before anyone knows its project."""

    def add(self, key: ApiKey) -> None:
        self._session.add(key)
        self._session.flush()

    def find(self, key_id: str) -> tuple[ApiKey, Project] | None:
        """A key and its project, or None if no key has this id."""
        query = select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id)
        row = self._session.execute(query.where(ApiKey.id == key_id)).first()
        return None if row is None else (row[0], row[1])

    def is_any(self, *, outside: str = "") -> bool:
        """Whether a key was ever created, even if it has expired or was revoked since.

        Args:
            outside: id of a project whose keys do not count.
        """
        query = select(ApiKey.id).where(ApiKey.project_id != outside).limit(1)
        return self._session.scalar(query) is not None

    def list_all(self) -> list[tuple[ApiKey, Project]]:
        """Every key with its project, oldest first."""
        query = select(ApiKey, Project).join(Project, Project.id == ApiKey.project_id)
        rows = self._session.execute(query.order_by(ApiKey.id))
        return [(key, project) for key, project in rows]

    def list_page(self, project_id: str, *, after: str | None, limit: int) -> Page[ApiKey]:
        """A page of the keys of a project, newest first, revoked and expired ones included.

        Args:
            project_id: id of the project.
            after: id of the key before the first one of the page.
            limit: maximum number of keys.
        """
        query = select(ApiKey).where(ApiKey.project_id == project_id).order_by(ApiKey.id.desc())
        if after is not None:
            query = query.where(ApiKey.id < after)
        rows = list(self._session.scalars(query.limit(limit + 1)))
        return Page(rows[:limit], has_more=len(rows) > limit)

    def count_working(self, *, now: datetime) -> int:
        """Number of keys that are neither revoked nor expired."""
        has_not_expired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
        working = select(func.count(ApiKey.id)).where(ApiKey.revoked_at.is_(None), has_not_expired)
        return self._session.scalars(working).one()

    def revoke(self, key_id: str, *, now: datetime) -> None:
        """Make a key unusable for good. The time of an earlier revocation stays."""
        working = ApiKey.id == key_id, ApiKey.revoked_at.is_(None)
        self._session.execute(update(ApiKey).where(*working).values(revoked_at=now))

    def record_use(self, key_id: str, *, now: datetime) -> bool:
        """Record the time of the last use. Returns whether the key still exists."""
        used = update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now)
        return self._session.scalar(used.returning(ApiKey.id)) is not None
