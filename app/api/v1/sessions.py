"""/v1/session: who sends a request, and how a browser signs in and out. An extension."""

from fastapi import APIRouter, Request, Response

from app.api.access import CALLER, needs
from app.api.admission import session_cookie
from app.api.admission.authentication import Authenticator
from app.api.admission.guard import OWN_PAGE
from app.api.deps import CallerDep, Now, ResourcesDep
from app.api.requests import OpenStrictJsonRoute, StrictJsonRoute
from app.core.db.repositories.projects.access import ProjectsRepository
from app.core.errors import PermissionDeniedError, UnauthenticatedError
from app.schemas.sessions import SessionCreate, SessionDeleted, SessionRead

router = APIRouter(tags=["session"], route_class=StrictJsonRoute)
_open_router = APIRouter(route_class=OpenStrictJsonRoute)


@router.get("/session", dependencies=[needs()])
def get_session(caller: CallerDep, resources: ResourcesDep) -> SessionRead:
    """Get the project and the scopes of the API key that this request was sent with."""
    if caller.key_id is None:
        return SessionRead.of(caller, None)
    project = resources.read(lambda session: ProjectsRepository(session).get(caller.project_id))
    return SessionRead.of(caller, project.name)


@_open_router.post("/session")
async def create_session(
    body: SessionCreate, request: Request, response: Response, now: Now
) -> SessionRead:
    """Sign a browser in: it keeps the API key in a cookie, which no script can read.

    The cookie counts only in requests of the service's own pages. Programs send the header
    `Authorization` instead. A browser can sign in over https, and over http on the same machine.
    """
    if request.headers.get("sec-fetch-site") != OWN_PAGE:
        raise PermissionDeniedError(
            "Only a page of this service can sign in, in a browser that has opened it over https, "
            "or as http://localhost or http://127.0.0.1. Elsewhere, browsers do not send "
            f"'Sec-Fetch-Site: {OWN_PAGE}'. Use https, or an ssh tunnel to the service's machine: "
            "docs/deployment.md shows both. A program sends 'Authorization: Bearer YOUR_KEY' "
            "instead.",
            code="sign_in_not_possible",
        )
    authenticator: Authenticator = request.app.state.authenticator
    try:
        authenticated = await authenticator.authenticate(f"Bearer {body.key}")
    except UnauthenticatedError as error:
        raise UnauthenticatedError(
            f"{error} Sign in with a whole key, which begins with tnr_. The operator of this "
            "service creates keys with 'tunery keys create'.",
            param="key",
        ) from error
    request.scope["state"][CALLER] = authenticated.caller  # for the log
    if authenticated.caller.key_id is not None:
        session_cookie.set_key(
            response,
            body.key.strip(),
            is_https=_is_https(request),
            expires_at=authenticated.expires_at,
            now=now,
        )
    return SessionRead.of(authenticated.caller, authenticated.project_name)


@_open_router.delete("/session")
async def delete_session(response: Response) -> SessionDeleted:
    """Sign a browser out: it forgets the API key. The key itself goes on working."""
    session_cookie.clear_key(response)
    return SessionDeleted()


def _is_https(request: Request) -> bool:
    """Whether the browser sees https, also where a proxy does not say so: `Origin` does."""
    origin = request.headers.get("origin", "")
    return request.url.scheme == "https" or origin.startswith("https://")


router.include_router(_open_router)
