"""What a caller can do with webhook endpoints. The caller owns the transaction."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from app.core.access import Caller
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.repositories.webhooks import Deliveries, WebhookRepository, secrets_of
from app.core.db.session import Session
from app.core.db.webhook_tables import WebhookEndpoint
from app.core.errors import InvalidRequestError
from app.core.ids import IdPrefix, new_id
from app.core.webhooks.events import WebhookEventType
from app.schemas.bodies import PageRead
from app.schemas.webhooks import (
    WebhookEndpointCreate,
    WebhookEndpointRead,
    WebhookEndpointUpdate,
    WebhookEndpointWithSecretRead,
    WebhookTestRead,
)
from app.webhooks.client import DeliveryError, WebhookClient
from app.webhooks.messages import build_body, build_headers, new_secret
from app.webhooks.targets import TargetPolicy

MAX_ENDPOINTS = 20
"""Maximum number of endpoints of a project: each event is sent to all that subscribe to it."""

OLD_SECRET_KEPT_FOR = timedelta(hours=24)

_SAMPLE_JOB_ID = f"{IdPrefix.JOB}{'0' * 26}"
"""Job in the sample that a test sends; there is no such job."""


def create_endpoint(
    session: Session,
    caller: Caller,
    body: WebhookEndpointCreate,
    policy: TargetPolicy,
    *,
    now: datetime,
) -> WebhookEndpointWithSecretRead:
    """Create an endpoint. The answer alone shows its secret.

    Raises:
        WebhooksDisabledError: the operator allows no targets.
        TargetRefusedError: the operator does not allow this URL.
        InvalidRequestError: the project has too many endpoints.
    """
    target = policy.check_url(body.url)
    endpoints = WebhookRepository(session, caller.project_id)
    endpoints.lock()
    if endpoints.count() >= MAX_ENDPOINTS:
        raise InvalidRequestError(
            f"There are {MAX_ENDPOINTS} webhook endpoints, and there can be no more. Delete or "
            "update one of them.",
            code="too_many_webhook_endpoints",
        )
    endpoint = WebhookEndpoint(
        id=new_id(IdPrefix.WEBHOOK_ENDPOINT),
        name=body.name,
        url=target.url,
        event_types=_without_repetitions(body.event_types),
        secret=new_secret(),
        created_at=now,
        updated_at=now,
        retry_at=now,
        leased_until=now,
    )
    endpoints.add(endpoint)
    audit.record(session, caller, Action.WEBHOOK_CREATED, endpoint.id, now=now)
    return WebhookEndpointWithSecretRead.of(endpoint, _count(session, endpoint))


def list_endpoints(
    session: Session, caller: Caller, *, after: str | None, limit: int
) -> PageRead[WebhookEndpointRead]:
    """A page of endpoints on the wire, newest first."""
    endpoints = WebhookRepository(session, caller.project_id)
    page = endpoints.list_page(after=after, limit=limit)
    counts = endpoints.count_deliveries(page.rows)
    return PageRead[WebhookEndpointRead].of(
        page,
        lambda endpoint: WebhookEndpointRead.of(endpoint, counts.get(endpoint.id, Deliveries())),
    )


def get_endpoint(session: Session, caller: Caller, endpoint_id: str) -> WebhookEndpointRead:
    """An endpoint on the wire.

    Raises:
        NotFoundError: no endpoint has this id.
    """
    endpoint = WebhookRepository(session, caller.project_id).get(endpoint_id)
    return WebhookEndpointRead.of(endpoint, _count(session, endpoint))


def update_endpoint(
    session: Session,
    caller: Caller,
    endpoint_id: str,
    body: WebhookEndpointUpdate,
    policy: TargetPolicy,
    *,
    now: datetime,
) -> WebhookEndpointRead:
    """Change an endpoint. A new URL also gets what the old one has not accepted.

    Raises:
        NotFoundError: no endpoint has this id.
        WebhooksDisabledError: there is a new URL, and the operator allows no targets.
        TargetRefusedError: the operator does not allow the new URL.
    """
    endpoint = WebhookRepository(session, caller.project_id).get_to_change(endpoint_id)
    before = (endpoint.name, endpoint.url, endpoint.event_types)
    if body.name is not None:
        endpoint.name = body.name
    if body.url is not None:
        endpoint.url = policy.check_url(body.url).url
    if body.event_types is not None:
        endpoint.event_types = _without_repetitions(body.event_types)
    if endpoint.url != before[1]:
        endpoint.failures, endpoint.retry_at = 0, now
    if (endpoint.name, endpoint.url, endpoint.event_types) != before:
        endpoint.updated_at = now
        audit.record(session, caller, Action.WEBHOOK_UPDATED, endpoint_id, now=now)
    return WebhookEndpointRead.of(endpoint, _count(session, endpoint))


def delete_endpoint(session: Session, caller: Caller, endpoint_id: str, *, now: datetime) -> None:
    """Delete an endpoint and its pending events.

    Raises:
        NotFoundError: no endpoint has this id.
    """
    endpoints = WebhookRepository(session, caller.project_id)
    endpoints.delete(endpoints.get_to_change(endpoint_id))
    audit.record(session, caller, Action.WEBHOOK_DELETED, endpoint_id, now=now)


def rotate_secret(
    session: Session, caller: Caller, endpoint_id: str, *, keeps_old: bool, now: datetime
) -> WebhookEndpointWithSecretRead:
    """Replace an endpoint's secret. The answer alone shows the new one.

    Args:
        keeps_old: whether the present secret still signs for `OLD_SECRET_KEPT_FOR`, beside the
            new one.

    Raises:
        NotFoundError: no endpoint has this id.
    """
    endpoint = WebhookRepository(session, caller.project_id).get_to_change(endpoint_id)
    endpoint.old_secret = endpoint.secret if keeps_old else None
    endpoint.old_secret_until = now + OLD_SECRET_KEPT_FOR if keeps_old else None
    endpoint.secret, endpoint.updated_at = new_secret(), now
    audit.record(session, caller, Action.WEBHOOK_ROTATED, endpoint_id, now=now)
    return WebhookEndpointWithSecretRead.of(endpoint, _count(session, endpoint))


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample event, ready to be sent. The transaction that made it is over by then."""

    endpoint_id: str
    event_type: WebhookEventType
    url: str
    headers: dict[str, str]
    body: bytes


def build_sample(
    session: Session,
    caller: Caller,
    endpoint_id: str,
    event_type: WebhookEventType,
    *,
    now: datetime,
) -> Sample:
    """Build and sign a sample event for an endpoint.

    Raises:
        NotFoundError: no endpoint has this id.
    """
    endpoint = WebhookRepository(session, caller.project_id).get(endpoint_id)
    event_id = new_id(IdPrefix.WEBHOOK_EVENT)
    body = build_body(event_id, event_type, _SAMPLE_JOB_ID, happened_at=now)
    headers = build_headers(event_id, body, secrets_of(endpoint, now=now), now=now)
    return Sample(endpoint_id, event_type, endpoint.url, headers, body)


def send_sample(client: WebhookClient, sample: Sample) -> WebhookTestRead:
    """Send a sample event once, now.

    Raises:
        WebhooksDisabledError: the operator allows no targets.
        TargetRefusedError: the operator does not allow the endpoint's URL.
        InvalidRequestError: there was no answer.
        TooManyWebhookTestsError: too many tests are running.
    """
    try:
        status = client.post_test(sample.url, sample.headers, sample.body)
    except DeliveryError as error:
        raise InvalidRequestError(
            f"The webhook endpoint could not be tested. {error}", code="webhook_unreachable"
        ) from error
    return WebhookTestRead(
        webhook_endpoint_id=sample.endpoint_id, event_type=sample.event_type, status_code=status
    )


def _count(session: Session, endpoint: WebhookEndpoint) -> Deliveries:
    endpoints = WebhookRepository(session, endpoint.project_id)
    return endpoints.count_deliveries([endpoint]).get(endpoint.id, Deliveries())


def _without_repetitions(event_types: list[WebhookEventType]) -> list[str]:
    return list(dict.fromkeys(event_types))
