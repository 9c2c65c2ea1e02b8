"""/v1/webhook_endpoints and /v1/webhook_event_types: who is told what happens to jobs."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.api.access import needs
from app.api.deps import LIMIT, CallerDep, Cursor, Now, ResourcesDep
from app.api.requests import StrictJsonRoute
from app.core.access import Scope
from app.core.ids import IdPrefix
from app.core.webhooks.events import WebhookEventType
from app.schemas.bodies import PageRead
from app.schemas.webhooks import (
    WebhookEndpointCreate,
    WebhookEndpointDeleted,
    WebhookEndpointRead,
    WebhookEndpointUpdate,
    WebhookEndpointWithSecretRead,
    WebhookEventTypesRead,
    WebhookSecretRotate,
    WebhookTest,
    WebhookTestRead,
)
from app.services import webhooks as webhook_service

router = APIRouter(tags=["webhooks"], route_class=StrictJsonRoute)


@router.post("/webhook_endpoints", dependencies=[needs(Scope.WRITE)])
def create_webhook_endpoint(
    body: WebhookEndpointCreate, caller: CallerDep, resources: ResourcesDep, now: Now
) -> WebhookEndpointWithSecretRead:
    """Create an endpoint that is told what happens to jobs. The answer alone shows its secret."""
    policy = resources.webhooks.policy
    return resources.write(
        lambda session: webhook_service.create_endpoint(session, caller, body, policy, now=now)
    )


@router.get("/webhook_endpoints", dependencies=[needs(Scope.READ)])
def list_webhook_endpoints(
    caller: CallerDep,
    resources: ResourcesDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.WEBHOOK_ENDPOINT))],
    limit: Annotated[int, Query(ge=1, le=100, description=LIMIT)] = 20,
) -> PageRead[WebhookEndpointRead]:
    """List webhook endpoints, newest first."""
    return resources.read(
        partial(webhook_service.list_endpoints, caller=caller, after=after, limit=limit)
    )


@router.get("/webhook_endpoints/{endpoint_id}", dependencies=[needs(Scope.READ)])
def get_webhook_endpoint(
    endpoint_id: str, caller: CallerDep, resources: ResourcesDep
) -> WebhookEndpointRead:
    """Get a webhook endpoint, and how many events it was sent."""
    return resources.read(
        partial(webhook_service.get_endpoint, caller=caller, endpoint_id=endpoint_id)
    )


@router.post("/webhook_endpoints/{endpoint_id}", dependencies=[needs(Scope.WRITE)])
def update_webhook_endpoint(
    endpoint_id: str,
    body: WebhookEndpointUpdate,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
) -> WebhookEndpointRead:
    """Change the name, the URL or the event types of a webhook endpoint."""
    policy = resources.webhooks.policy
    return resources.write(
        lambda session: webhook_service.update_endpoint(
            session, caller, endpoint_id, body, policy, now=now
        )
    )


@router.delete("/webhook_endpoints/{endpoint_id}", dependencies=[needs(Scope.WRITE)])
def delete_webhook_endpoint(
    endpoint_id: str, caller: CallerDep, resources: ResourcesDep, now: Now
) -> WebhookEndpointDeleted:
    """Delete a webhook endpoint. Its pending events are discarded."""
    delete = partial(
        webhook_service.delete_endpoint, caller=caller, endpoint_id=endpoint_id, now=now
    )
    resources.write(delete, frees_space=True)
    return WebhookEndpointDeleted(id=endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret", dependencies=[needs(Scope.WRITE)])
def rotate_webhook_secret(
    endpoint_id: str,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    body: WebhookSecretRotate | None = None,
) -> WebhookEndpointWithSecretRead:
    """Replace the secret of a webhook endpoint. The answer alone shows the new one."""
    keeps_old = body is not None and body.keep_old_secret_active_for_24_hours
    return resources.write(
        lambda session: webhook_service.rotate_secret(
            session, caller, endpoint_id, keeps_old=keeps_old, now=now
        )
    )


@router.post("/webhook_endpoints/{endpoint_id}/test", dependencies=[needs(Scope.WRITE)])
def send_test_event(
    endpoint_id: str, body: WebhookTest, caller: CallerDep, resources: ResourcesDep, now: Now
) -> WebhookTestRead:
    """Send a sample event to a webhook endpoint, once, and show the status of its answer."""
    sample = resources.read(
        lambda session: webhook_service.build_sample(
            session, caller, endpoint_id, body.event_type, now=now
        )
    )
    return webhook_service.send_sample(resources.webhooks, sample)


@router.get("/webhook_event_types", dependencies=[needs(Scope.READ)])
def list_webhook_event_types() -> WebhookEventTypesRead:
    """List the types of events that a webhook endpoint can subscribe to."""
    return WebhookEventTypesRead(data=list(WebhookEventType))
