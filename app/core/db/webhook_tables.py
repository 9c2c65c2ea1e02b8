"""Tables of webhooks: who is told what happens to jobs, and what is still to be told."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.base import Base, OwnedByProject


class WebhookEndpoint(OwnedByProject, Base):
    """A URL that is told what happens to the jobs of a project."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        CheckConstraint("(old_secret IS NOT NULL) = (old_secret_until IS NOT NULL)", "old_secret"),
        Index(None, "project_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    url: Mapped[str]
    """In the one spelling that `app/webhooks/targets.py` gives it."""
    event_types: Mapped[list[str]]
    secret: Mapped[str]
    """Signs every message, so it is stored as it is and not as a hash."""
    old_secret: Mapped[str | None]
    """The secret before the last rotation, which signs as well until `old_secret_until`."""
    old_secret_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    """Last change by a user."""
    failures: Mapped[int] = mapped_column(default=0)
    """Number of pauses since the last success. Each pause is longer than the one before."""
    retry_at: Mapped[datetime]
    """End of the present pause: events that have failed before are sent again from then on."""
    last_error: Mapped[str | None]
    """Why the last attempt failed; null if it succeeded."""
    leased_until: Mapped[datetime]
    """Until then, the endpoint belongs to the sender that set this time."""


class WebhookDelivery(OwnedByProject, Base):
    """An event for one endpoint. Several endpoints get the same event under the same id."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", "status"),
        CheckConstraint("(ended_at IS NOT NULL) = (status <> 'pending')", "ended"),
        Index(None, "endpoint_id", "status", "attempts", "event_id"),
        Index(None, "status", "created_at"),
        Index(None, "project_id"),
    )

    event_id: Mapped[str] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), primary_key=True
    )
    event_type: Mapped[str]
    job_id: Mapped[str]
    """No foreign key: an event about a job outlives it."""
    created_at: Mapped[datetime]
    """When it happened."""
    status: Mapped[str] = mapped_column(default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    """Number of attempts whose outcome is known."""
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
