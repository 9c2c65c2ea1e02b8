"""/v1/organization: projects, their limits and usage, and the audit trail. For admins."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from app.api.access import needs
from app.api.deps import LIMIT, CallerDep, Cursor, Now, ResourcesDep
from app.api.requests import StrictJsonRoute
from app.core.access import Scope
from app.core.ids import IdPrefix
from app.schemas.bodies import PageRead
from app.schemas.organization.projects import (
    AuditEventRead,
    ProjectErased,
    ProjectList,
    ProjectRead,
    ProjectUpdate,
    ProjectUsageRead,
)
from app.services import projects as project_service

router = APIRouter(prefix="/organization", tags=["organization"], route_class=StrictJsonRoute)

ProjectName = Annotated[str, Path(alias="project_id", description="Id or name of the project.")]


@router.get("/projects", dependencies=[needs(Scope.ADMIN)])
def list_projects(resources: ResourcesDep) -> ProjectList:
    """List all projects with their limits, in the order of their names."""
    return ProjectList(data=list(resources.read(project_service.list_projects)))


@router.get("/projects/{project_id}", dependencies=[needs(Scope.ADMIN)])
def get_project(project_name: ProjectName, resources: ResourcesDep) -> ProjectRead:
    """Get a project and its limits."""
    return resources.read(lambda session: project_service.get_project(session, project_name))


@router.post("/projects/{project_id}", dependencies=[needs(Scope.ADMIN)])
def update_project(
    project_name: ProjectName,
    body: ProjectUpdate,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
) -> ProjectRead:
    """Change the limits of a project, and how long it keeps files, jobs and events."""
    return resources.write(
        lambda session: project_service.update_project(
            session, project_name, body, by=caller, now=now
        )
    )


@router.get("/projects/{project_id}/usage", dependencies=[needs(Scope.ADMIN)])
def get_usage(project_name: ProjectName, resources: ResourcesDep, now: Now) -> ProjectUsageRead:
    """Get what a project stores and runs, and what it has used this month."""
    return resources.read(
        lambda session: project_service.read_usage(session, project_name, now=now)
    )


@router.delete("/projects/{project_id}", dependencies=[needs(Scope.ADMIN)])
def erase_project(
    project_name: ProjectName, caller: CallerDep, resources: ResourcesDep, now: Now
) -> ProjectErased:
    """Erase a project: revoke its keys, cancel its jobs, and delete all its rows and all its bytes.

    If the request breaks off, send it again: it continues.
    """
    return project_service.erase_project(
        project_name,
        read=resources.read,
        write=partial(resources.write, frees_space=True),
        store=resources.store,
        settings=resources.settings,
        by=caller,
        now=now,
    )


@router.get("/audit_logs", dependencies=[needs(Scope.ADMIN)])
def list_audit_events(
    resources: ResourcesDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.AUDIT_EVENT))],
    limit: Annotated[int, Query(ge=1, le=1000, description=LIMIT)] = 20,
    project_name: Annotated[
        str | None,
        Query(
            alias="project_id",
            description="Only what was done in the project with this id or name.",
        ),
    ] = None,
) -> PageRead[AuditEventRead]:
    """List who did what, with which key, newest first."""
    return resources.read(
        lambda session: project_service.list_audit_events(
            session, project_name=project_name, after=after, limit=limit
        )
    )
