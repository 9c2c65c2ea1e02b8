"""Every query on webhooks: a project's endpoints, and the queue of events for all endpoints.

An event is queued in the transaction of what it reports, so none is lost and none is invented.
`transitions` does that, whichever process changes a job.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update

from app.core.db.base import Page, ProjectRepository, Repository
from app.core.db.session import lock_names
from app.core.db.webhook_tables import WebhookDelivery, WebhookEndpoint
from app.core.errors import NotFoundError
from app.core.ids import IdPrefix, new_id
from app.core.webhooks.events import WebhookEventType

GIVE_UP_AFTER = timedelta(days=3)
"""Age of an event after which it is not sent any more."""
DELIVERIES_KEPT_FOR = timedelta(days=7)
"""How long an event is counted after it was delivered or given up."""


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Number of events for an endpoint: still to send, and of the last days the others."""

    pending: int = 0
    delivered: int = 0
    failed: int = 0


class WebhookRepository(ProjectRepository):
    """The webhook endpoints of one project."""

    def lock(self) -> None:
        """Wait until no other transaction adds an endpoint, and keep others waiting."""
        lock_names(self._session, self._project_id, WebhookEndpoint.__tablename__)

    def count(self) -> int:
        query = self._select(WebhookEndpoint).with_only_columns(func.count())
        return self._session.scalars(query).one()

    def add(self, endpoint: WebhookEndpoint) -> None:
        self._add(endpoint)

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        """The endpoint with this id.

        Raises:
            NotFoundError: there is none.
        """
        return self._get(self._select(WebhookEndpoint), endpoint_id)

    def get_to_change(self, endpoint_id: str) -> WebhookEndpoint:
        """The endpoint with this id, locked so that no other transaction changes it.

        Raises:
            NotFoundError: there is none.
        """
        return self._get(self._select(WebhookEndpoint).with_for_update(), endpoint_id)

    def list_page(self, *, after: str | None, limit: int) -> Page[WebhookEndpoint]:
        """Return a page of endpoints, newest first."""
        query = self._select(WebhookEndpoint)
        return self._fetch_page(query, WebhookEndpoint.id, after=after, limit=limit)

    def delete(self, endpoint: WebhookEndpoint) -> None:
        """Delete an endpoint and every event for it."""
        this = WebhookEndpoint.id == endpoint.id
        self._session.execute(self._delete(WebhookEndpoint).where(this))

    def count_deliveries(self, endpoints: Collection[WebhookEndpoint]) -> dict[str, Deliveries]:
        """Count the events for each of these endpoints, by its id, unless it has none."""
        ids = [endpoint.id for endpoint in endpoints]
        which = (WebhookDelivery.endpoint_id, WebhookDelivery.status)
        query = self._select(WebhookDelivery).with_only_columns(*which, func.count())
        counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for endpoint_id, status, count in self._session.execute(
            query.where(which[0].in_(ids)).group_by(*which)
        ):
            counts[endpoint_id][status] = count
        return {endpoint_id: Deliveries(**found) for endpoint_id, found in counts.items()}

    def announce(self, event_type: WebhookEventType, job_id: str, *, now: datetime) -> None:
        """Queue an event for every endpoint that subscribes to its type.

        The lock keeps an endpoint that is being deleted from failing this transaction. It keeps
        nobody from sending.
        """
        query = self._select(WebhookEndpoint).order_by(WebhookEndpoint.id)
        endpoints = self._session.scalars(query.with_for_update(read=True, key_share=True)).all()
        event_id = new_id(IdPrefix.WEBHOOK_EVENT)
        self._add(
            *(
                WebhookDelivery(
                    event_id=event_id,
                    endpoint_id=endpoint.id,
                    event_type=event_type,
                    job_id=job_id,
                    created_at=now,
                )
                for endpoint in endpoints
                if event_type in endpoint.event_types
            )
        )

    def _get(self, query: Select[WebhookEndpoint], endpoint_id: str) -> WebhookEndpoint:
        endpoint = self._session.scalar(query.where(WebhookEndpoint.id == endpoint_id))
        if endpoint is None:
            raise NotFoundError(
                f"No such webhook endpoint: {endpoint_id:.80}", code="webhook_endpoint_not_found"
            )
        return endpoint


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One event that one sender sends to one endpoint. Until `leased_until`, nobody else does."""

    endpoint_id: str
    url: str
    secrets: Sequence[str]
    """The message is signed with each of them."""
    failures: int
    event_id: str
    event_type: WebhookEventType
    job_id: str
    created_at: datetime
    leased_until: datetime


class WebhookQueue(Repository):
    """The events that are to be sent, of all projects.

    An endpoint has one sender at a time and is sent one event at a time, and all endpoints take
    turns. A new event is sent at once. When one fails, the endpoint has a pause: all events that
    have failed before wait for its end. They are then tried in turn, and when one gets through,
    the others follow at once. So an endpoint that is down costs one attempt for each pause, and
    an event that an endpoint never accepts keeps no other one back.
    """

    def is_any_due(self, *, now: datetime) -> bool:
        return bool(self._session.scalar(select(exists().where(_has_due(now)))))

    def claim(self, *, now: datetime, lease_for: timedelta) -> Dispatch | None:
        """Give the next event to a sender, and its endpoint with it. None if nothing is due.

        Like the claim of a job, this is one statement, so two senders can never both win.
        """
        next_due = (
            select(WebhookEndpoint.id)
            .where(_has_due(now))
            .order_by(WebhookEndpoint.leased_until, WebhookEndpoint.id)
            .limit(1)
            .with_for_update(skip_locked=True, key_share=True)
            .scalar_subquery()
        )
        endpoint = self._session.scalars(
            update(WebhookEndpoint)
            .where(WebhookEndpoint.id == next_due)
            .values(leased_until=now + lease_for)
            .returning(WebhookEndpoint)
        ).one_or_none()
        delivery = endpoint and self._session.scalar(
            select(WebhookDelivery)
            .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
            .where(WebhookEndpoint.id == endpoint.id, _is_due(now))
            .order_by(WebhookDelivery.attempts, WebhookDelivery.event_id)
            .limit(1)
        )
        return _dispatch_of(endpoint, delivery, now) if endpoint and delivery else None

    def record_success(self, sent: Dispatch, *, now: datetime) -> None:
        """The event was accepted: it is over, and the endpoint has no pause any more."""
        endpoint = self._release(sent, now)
        if endpoint is not None:
            endpoint.failures, endpoint.retry_at, endpoint.last_error = 0, now, None
            self._update(sent, status="delivered", ended_at=now)

    def record_failure(
        self, sent: Dispatch, error: str, *, now: datetime, retry_at: datetime
    ) -> None:
        """The event was not accepted: begin a pause until `retry_at`, unless there is one."""
        endpoint = self._release(sent, now)
        if endpoint is not None:
            endpoint.last_error = error
            if endpoint.retry_at <= now:
                endpoint.failures, endpoint.retry_at = endpoint.failures + 1, retry_at
            self._update(sent)

    def give_up(self, *, older_than: datetime, now: datetime) -> list[tuple[str, str]]:
        """End the pending events from before this time. Returns the ids of event and endpoint."""
        old = (WebhookDelivery.status == "pending", WebhookDelivery.created_at < older_than)
        ended = update(WebhookDelivery).where(*old).values(status="failed", ended_at=now)
        which = ended.returning(WebhookDelivery.event_id, WebhookDelivery.endpoint_id)
        return [(event_id, endpoint_id) for event_id, endpoint_id in self._session.execute(which)]

    def delete_ended(self, *, older_than: datetime) -> None:
        """Delete the events that ended before this time."""
        self._session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < older_than))

    def _release(self, sent: Dispatch, now: datetime) -> WebhookEndpoint | None:
        """Return the endpoint, free for the next event, or None if the lease was lost."""
        is_held = (
            WebhookEndpoint.id == sent.endpoint_id,
            WebhookEndpoint.leased_until == sent.leased_until,
        )
        return self._session.scalars(
            update(WebhookEndpoint)
            .where(*is_held)
            .values(leased_until=now)
            .returning(WebhookEndpoint),
            execution_options={"populate_existing": True},
        ).one_or_none()

    def _update(self, sent: Dispatch, **values: object) -> None:
        this = (
            WebhookDelivery.event_id == sent.event_id,
            WebhookDelivery.endpoint_id == sent.endpoint_id,
        )
        counted = {"attempts": WebhookDelivery.attempts + 1, **values}
        self._session.execute(update(WebhookDelivery).where(*this).values(counted))


def _is_due(now: datetime) -> ColumnElement[bool]:
    """Whether an event is to be sent now, once nobody else uses its endpoint."""
    return and_(
        WebhookDelivery.status == "pending",
        or_(WebhookDelivery.attempts == 0, WebhookEndpoint.retry_at <= now),
    )


def _has_due(now: datetime) -> ColumnElement[bool]:
    """Whether nobody uses an endpoint, and an event is to be sent to it now.

    `_is_due` would say the same, but read every pending event of an endpoint that has a pause.
    """
    is_pending = (
        WebhookDelivery.endpoint_id == WebhookEndpoint.id,
        WebhookDelivery.status == "pending",
    )
    pending = select(WebhookDelivery.event_id).where(*is_pending).correlate(WebhookEndpoint)
    has_new = pending.where(WebhookDelivery.attempts == 0).exists()
    may_retry = and_(WebhookEndpoint.retry_at <= now, pending.exists())
    return and_(WebhookEndpoint.leased_until <= now, or_(has_new, may_retry))


def _dispatch_of(endpoint: WebhookEndpoint, delivery: WebhookDelivery, now: datetime) -> Dispatch:
    return Dispatch(
        endpoint_id=endpoint.id,
        url=endpoint.url,
        secrets=secrets_of(endpoint, now=now),
        failures=endpoint.failures,
        event_id=delivery.event_id,
        event_type=WebhookEventType(delivery.event_type),
        job_id=delivery.job_id,
        created_at=delivery.created_at,
        leased_until=endpoint.leased_until,
    )


def secrets_of(endpoint: WebhookEndpoint, *, now: datetime) -> list[str]:
    """The secrets that sign a message to this endpoint now, the newest first."""
    is_kept = endpoint.old_secret_until is not None and endpoint.old_secret_until > now
    old = [endpoint.old_secret] if is_kept and endpoint.old_secret else []
    return [endpoint.secret, *old]
