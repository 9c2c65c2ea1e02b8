"""Wire format of webhook endpoints."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.core.db.repositories.webhooks import Deliveries
from app.core.db.webhook_tables import WebhookEndpoint
from app.core.webhooks.events import WebhookEventType
from app.schemas.bodies import ItemRead, RequestBody, ResponseBody, UnixTime
from app.webhooks.messages import hint_of
from app.webhooks.targets import MAX_URL

_EventType = Annotated[WebhookEventType, Field(strict=False)]  # a string in JSON
_EventTypes = Annotated[list[_EventType], Field(min_length=1, max_length=50)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL)]


class WebhookEndpointCreate(RequestBody):
    name: _Name
    """A name for people."""
    url: _Url
    """URL that receives the events. The operator of the service decides which are allowed."""
    event_types: _EventTypes
    """Types of the events to send. `GET /v1/webhook_event_types` lists them."""


class WebhookEndpointUpdate(RequestBody):
    """What is absent or null stays as it is."""

    name: _Name | None = None
    """A name for people."""
    url: _Url | None = None
    """URL that receives the events from now on, also those that were not delivered yet."""
    event_types: _EventTypes | None = None
    """All types of the events to send from now on."""


class WebhookSecretRotate(RequestBody):
    keep_old_secret_active_for_24_hours: bool = False
    """Whether messages are also signed with the previous secret for 24 hours."""


class WebhookTest(RequestBody):
    event_type: _EventType
    """Type of the sample. The endpoint need not subscribe to it."""


class DeliveriesRead(ResponseBody):
    pending: int
    """Number of events that are still to be sent."""
    delivered: int
    """Number of events that were accepted in the last seven days."""
    failed: int
    """Number of events that were given up in the last seven days, three days after they
    happened."""


class WebhookEndpointRead(ItemRead):
    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: UnixTime
    updated_at: UnixTime
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    """The end of the signing secret, to tell secrets apart."""

    # From here on, ours.
    deliveries: DeliveriesRead
    last_error: str | None
    """Why the last event could not be delivered. Null if it was delivered, or none was sent yet."""

    @classmethod
    def of(cls, endpoint: WebhookEndpoint, deliveries: Deliveries) -> "WebhookEndpointRead":
        return cls.model_validate(_describe(endpoint, deliveries))


class WebhookEndpointWithSecretRead(WebhookEndpointRead):
    signing_secret: str
    """The secret that signs every message. It is shown this once."""

    @classmethod
    def of(
        cls, endpoint: WebhookEndpoint, deliveries: Deliveries
    ) -> "WebhookEndpointWithSecretRead":
        shown = _describe(endpoint, deliveries)
        return cls.model_validate({**shown, "signing_secret": endpoint.secret})


def _describe(endpoint: WebhookEndpoint, deliveries: Deliveries) -> dict[str, object]:
    return {
        "id": endpoint.id,
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": hint_of(endpoint.secret),
        "deliveries": deliveries,
        "last_error": endpoint.last_error,
    }


class WebhookEndpointDeleted(ResponseBody):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookTestRead(ResponseBody):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    """HTTP status that the endpoint answered with."""
    success: Literal[True] = True
    """Whether there was an answer, whatever its status."""


class WebhookEventTypesRead(ResponseBody):
    object: Literal["list"] = "list"
    data: list[WebhookEventType]
