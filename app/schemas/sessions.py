"""Wire format of a session: who sends a request, and how a browser signs in."""

from typing import Literal

from pydantic import Field

from app.core.access import Caller, Scope
from app.schemas.bodies import RequestBody, ResponseBody


class SessionCreate(RequestBody):
    key: str = Field(min_length=1, max_length=256)
    """API key of the person who signs in, such as `tnr_...`."""


class SessionProject(ResponseBody):
    id: str
    name: str


class SessionRead(ResponseBody):
    object: Literal["session"] = "session"
    project: SessionProject | None
    """Project of the API key. Null while the service needs no key."""
    scopes: list[Scope]
    """What the API key may do, in alphabetical order."""
    key_id: str | None
    """Id of the API key. Null while the service needs no key."""
    is_keyless: bool
    """True while the service has no API keys, and serves every request from its own machine."""

    @classmethod
    def of(cls, caller: Caller, project_name: str | None) -> "SessionRead":
        """Describe a caller. The name of its project is None while the service needs no key."""
        project = SessionProject(id=caller.project_id, name=project_name) if project_name else None
        return cls(
            project=project,
            scopes=sorted(caller.scopes),
            key_id=caller.key_id,
            is_keyless=caller.key_id is None,
        )


class SessionDeleted(ResponseBody):
    object: Literal["session.deleted"] = "session.deleted"
    deleted: Literal[True] = True
