"""Wire format of API keys, as admins manage them. The names are those of OpenAI's admin API."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from app.core.access import DEFAULT_SCOPES, Scope
from app.core.access.api_keys import redact_key
from app.core.db.project_tables import ApiKey
from app.schemas.bodies import ItemRead, RequestBody, ResponseBody, UnixTime

_MAX_DAYS = 36_500


class ApiKeyCreate(RequestBody):
    scopes: list[Annotated[Scope, Field(strict=False)]] = Field(
        list(DEFAULT_SCOPES), min_length=1, max_length=len(Scope)
    )
    """What the key may do. No scope includes another."""
    expires_in_days: int | None = Field(None, ge=1, le=_MAX_DAYS)
    """Days after which the key stops working. Null if it does not expire."""


class ApiKeyOwner(ResponseBody):
    type: None = None
    """Always null, because a key belongs to its project and not to a person."""


class ApiKeyRead(ItemRead):
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    """The id of the key, because keys have no names."""
    redacted_value: str
    """Beginning of the key, up to its secret."""
    created_at: UnixTime
    last_used_at: UnixTime | None
    """Time of its last use, to the minute. Null if it was never used."""
    expires_at: UnixTime | None
    """When the key stops working. Null if it does not expire."""
    owner: ApiKeyOwner = ApiKeyOwner()
    owner_project_access: Literal["active", "inactive"]
    """Whether the key works: `inactive` once it was revoked or has expired."""

    # From here on, ours.
    project_id: str
    scopes: list[Scope]
    """What the key may do. No scope includes another."""
    revoked_at: UnixTime | None
    """When the key was revoked. Null if it was not."""

    @classmethod
    def of(cls, key: ApiKey, *, now: datetime) -> "ApiKeyRead":
        return cls.model_validate(_fields_of(key, now=now))


class ApiKeyCreated(ApiKeyRead):
    value: str
    """The key itself. Only this response shows it; the service keeps its hash."""

    @classmethod
    def with_value(cls, value: str, key: ApiKey, *, now: datetime) -> "ApiKeyCreated":
        return cls.model_validate({"value": value, **_fields_of(key, now=now)})


class ApiKeyDeleted(ResponseBody):
    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


def _fields_of(key: ApiKey, *, now: datetime) -> dict[str, object]:
    has_expired = key.expires_at is not None and key.expires_at <= now
    works = key.revoked_at is None and not has_expired
    return {
        "id": key.id,
        "name": key.id,
        "redacted_value": redact_key(key.id),
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "expires_at": key.expires_at,
        "owner_project_access": "active" if works else "inactive",
        "project_id": key.project_id,
        "scopes": key.scopes,
        "revoked_at": key.revoked_at,
    }
