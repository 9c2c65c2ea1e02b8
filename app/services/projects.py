"""What an admin can do with projects, over the API and on the command line."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from app.core.access import DEFAULT_PROJECT_ID, Caller
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.access import KeyRepository, ProjectsRepository
from app.core.db.repositories.projects.audit import Action, AuditLog
from app.core.db.repositories.projects.erasure import ErasureRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Session
from app.core.errors import StateConflictError
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore, delete_blobs
from app.core.storage.trees import remove_tree
from app.schemas.bodies import PageRead
from app.schemas.organization.projects import (
    AuditEventRead,
    ProjectErased,
    ProjectRead,
    ProjectUpdate,
    ProjectUsageRead,
)

T = TypeVar("T")

_JOBS_AT_ONCE = 50
"""Number of jobs that one transaction of an erasure deletes."""


class Transact(Protocol):
    """Runs a function in a transaction of its own."""

    def __call__(self, act: Callable[[Session], T]) -> T: ...


def list_projects(session: Session) -> Sequence[ProjectRead]:
    """Every project, in the order of their names."""
    return [ProjectRead.model_validate(row) for row in ProjectsRepository(session).list_all()]


def get_project(session: Session, project_name: str) -> ProjectRead:
    """The project with this name or id.

    Raises:
        NotFoundError: there is none.
    """
    return ProjectRead.model_validate(ProjectsRepository(session).get(project_name))


def update_project(
    session: Session, project_name: str, changes: ProjectUpdate, *, by: Caller | None, now: datetime
) -> ProjectRead:
    """Change limits of the project with this name or id.

    Args:
        by: whoever sent the request. None for the command line.

    Raises:
        NotFoundError: no project has this name or id.
    """
    project = ProjectsRepository(session).get(project_name)
    values: dict[str, Any] = changes.model_dump(exclude_unset=True)
    for name, value in values.items():
        setattr(project, name, value)
    audit.record(session, by, Action.PROJECT_UPDATED, project.id, now=now, project_id=project.id)
    return ProjectRead.model_validate(project)


def read_usage(session: Session, project_name: str, *, now: datetime) -> ProjectUsageRead:
    """What the project with this name or id uses.

    Raises:
        NotFoundError: no project has this name or id.
    """
    project = ProjectsRepository(session).get(project_name)
    usage = UsageRepository(session, project.id).measure(now=now)
    return ProjectUsageRead.of(project.id, usage, now=now)


def list_audit_events(
    session: Session, *, project_name: str | None, after: str | None, limit: int
) -> PageRead[AuditEventRead]:
    """A page of the audit trail, newest first.

    Args:
        project_name: name or id of the only project to show. None for all.

    Raises:
        NotFoundError: no project has this name or id.
    """
    project_id = None
    if project_name is not None:
        project_id = ProjectsRepository(session).get(project_name).id
    page = AuditLog(session).list_page(project_id=project_id, after=after, limit=limit)
    return PageRead[AuditEventRead].of(
        page,
        lambda row: AuditEventRead(
            id=row.id,
            type=row.action,
            effective_at=int(row.created_at.timestamp()),
            project_id=row.project_id,
            object_id=row.object_id,
            key_id=row.key_id,
            request_id=row.request_id,
        ),
    )


def erase_project(
    project_name: str,
    *,
    read: Transact,
    write: Transact,
    store: BlobStore,
    settings: Settings,
    by: Caller | None,
    now: datetime,
) -> ProjectErased:
    """Delete a project and everything that belongs to it: all rows and all bytes.

    Its keys are revoked and its running jobs cancelled first. An erasure that breaks off, because
    the process dies, is continued by calling this again.

    Args:
        project_name: name or id of the project.
        read: runs a function that changes nothing.
        write: runs a function in a transaction that must also succeed on a full disk.
        by: whoever sent the request. None for the command line.

    Raises:
        NotFoundError: no project has this name or id.
        StateConflictError: it is the project of the caller's own key, or it has the only keys.
    """

    def close(session: Session) -> str:
        project = ProjectsRepository(session).get(project_name)
        _require_other(project.id, by)
        _require_other_keys(session, project.id)
        project.erasing_since = project.erasing_since or now
        ErasureRepository(session, project.id).revoke_keys(now=now)
        RecoveryRepository(session).cancel_running(project.id, now=now)
        return project.id

    def count(session: Session) -> tuple[dict[str, int], int]:
        stored_bytes = UsageRepository(session, project_id).stored_bytes()
        return ErasureRepository(session, project_id).count_rows(), stored_bytes

    def delete_jobs(session: Session) -> Sequence[str] | None:
        return ErasureRepository(session, project_id).delete_jobs(limit=_JOBS_AT_ONCE)

    def delete_rest(session: Session) -> Sequence[str]:
        keys = ErasureRepository(session, project_id).delete_rest()
        projects = ProjectsRepository(session)
        project = projects.get(project_id)
        if project_id == DEFAULT_PROJECT_ID:  # a service without keys needs it
            project.erasing_since = None
        else:
            projects.delete(project)
        # Recorded for another project, because this one has no audit trail any more.
        audit.record(session, by, Action.PROJECT_ERASED, project_id, now=now)
        return keys

    project_id = write(close)
    rows, stored_bytes = read(count)  # not in a transaction that keeps others from writing
    blobs = left = 0
    while (keys := write(delete_jobs)) is not None:
        left += delete_blobs(store, keys)
        blobs += len(keys)
    remove_tree(settings.project_caches_dir, project_id)
    remove_tree(settings.data_dir, settings.copies_dir.name)  # the project's are not told apart
    keys = write(delete_rest)
    left += delete_blobs(store, keys)
    blobs += len(keys)
    return ProjectErased(id=project_id, rows=rows, blobs=blobs, bytes=stored_bytes, blobs_left=left)


def _require_other(project_id: str, by: Caller | None) -> None:
    if by is not None and by.project_id == project_id:
        raise StateConflictError(
            f"{project_id} is the project of the key that you use. Use a key of another project, "
            "or 'tunery projects erase'.",
            code="project_not_erasable",
        )


def _require_other_keys(session: Session, project_id: str) -> None:
    """Keep a service with keys from becoming one without, which would serve everybody."""
    keys = KeyRepository(session)
    if keys.is_any() and not keys.is_any(outside=project_id):
        raise StateConflictError(
            f"{project_id} has the only API keys of this service, and without any it would need "
            "none. Create a key of another project first, with 'tunery keys create'.",
            code="project_not_erasable",
        )
