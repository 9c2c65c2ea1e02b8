"""/v1/organization/projects/{project_id}/api_keys: the keys of a project. For admins."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.api.access import needs
from app.api.deps import LIMIT, CallerDep, Cursor, Now, ResourcesDep
from app.api.requests import StrictJsonRoute
from app.api.v1.organization.projects import ProjectName
from app.core.access import Caller, Scope
from app.core.db.project_tables import ApiKey
from app.core.db.repositories.projects.access import KeyRepository, ProjectsRepository
from app.core.db.session import Session
from app.core.errors import NotFoundError, StateConflictError
from app.core.ids import IdPrefix
from app.maintenance import keys
from app.schemas.bodies import PageRead
from app.schemas.organization.api_keys import (
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyDeleted,
    ApiKeyRead,
)

router = APIRouter(
    prefix="/organization/projects/{project_id}/api_keys",
    tags=["organization"],
    route_class=StrictJsonRoute,
)


@router.get("", dependencies=[needs(Scope.ADMIN)])
def list_api_keys(
    project_name: ProjectName,
    resources: ResourcesDep,
    now: Now,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.KEY))],
    limit: Annotated[int, Query(ge=1, le=100, description=LIMIT)] = 20,
) -> PageRead[ApiKeyRead]:
    """List the API keys of a project, newest first, also those that were revoked or have expired.

    The keys themselves are not shown.
    """

    def read(session: Session) -> PageRead[ApiKeyRead]:
        project = ProjectsRepository(session).get(project_name)
        page = KeyRepository(session).list_page(project.id, after=after, limit=limit)
        return PageRead[ApiKeyRead].of(page, lambda key: ApiKeyRead.of(key, now=now))

    return resources.read(read)


@router.post("", dependencies=[needs(Scope.ADMIN)])
def create_api_key(
    project_name: ProjectName,
    body: ApiKeyCreate,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
) -> ApiKeyCreated:
    """Create an API key of a project. The answer alone shows it. An extension of OpenAI's API.

    While the service has no keys this is refused, because with the first one every request needs a
    key, for good. The operator creates that one, with `tunery keys create`.
    """
    expires_at = body.expires_in_days and now + timedelta(days=body.expires_in_days)

    def create(session: Session) -> ApiKeyCreated:
        project = ProjectsRepository(session).get(project_name)
        _require_keys(caller)
        new = keys.create_key(
            session, project.id, body.scopes, expires_at=expires_at or None, now=now, by=caller
        )
        return ApiKeyCreated.with_value(new.key, _get(session, project.id, new.key_id), now=now)

    return resources.write(create)


@router.get("/{api_key_id}", dependencies=[needs(Scope.ADMIN)])
def get_api_key(
    project_name: ProjectName, api_key_id: str, resources: ResourcesDep, now: Now
) -> ApiKeyRead:
    """Get an API key of a project, without the key itself."""

    def read(session: Session) -> ApiKeyRead:
        project = ProjectsRepository(session).get(project_name)
        return ApiKeyRead.of(_get(session, project.id, api_key_id), now=now)

    return resources.read(read)


@router.delete("/{api_key_id}", dependencies=[needs(Scope.ADMIN)])
def revoke_api_key(
    project_name: ProjectName, api_key_id: str, caller: CallerDep, resources: ResourcesDep, now: Now
) -> ApiKeyDeleted:
    """Revoke an API key of a project, within a second and for good. It stays in the list.

    A key cannot revoke itself, so a working key with the scope `admin` is always left.
    """

    def revoke(session: Session) -> None:
        project = ProjectsRepository(session).get(project_name)
        key = _get(session, project.id, api_key_id)
        _require_other(key, caller)
        keys.revoke_key(session, key.id, now=now, by=caller)

    resources.write(revoke)
    return ApiKeyDeleted(id=api_key_id)


def _get(session: Session, project_id: str, key_id: str) -> ApiKey:
    found = KeyRepository(session).find(key_id)
    if found is None or found[1].id != project_id:
        raise NotFoundError(
            f"The project {project_id} has no API key {key_id:.80}.", code="api_key_not_found"
        )
    return found[0]


def _require_keys(caller: Caller) -> None:
    """Refuse to end the time without keys: whoever reaches such a service could end it for all."""
    if caller.key_id is None:
        raise StateConflictError(
            "This service has no API keys, and with the first one every request needs a key. Its "
            "operator creates the first one on the service's machine, with 'tunery keys create "
            "--scope admin --scope read --scope write'.",
            code="no_api_keys_yet",
        )


def _require_other(key: ApiKey, caller: Caller) -> None:
    if key.id == caller.key_id:
        raise StateConflictError(
            f"{key.id} is the key that you use. Revoke it with another key that has the scope "
            "'admin', or with 'tunery keys revoke'.",
            code="api_key_in_use",
        )
