"""Tables about projects as a whole: keys, usage, what was done, and remembered requests."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.base import Base, OwnedByProject


def month_of(moment: datetime) -> str:
    """The month in UTC, as `ProjectUsage` names it: `2030-01`."""
    return f"{moment:%Y-%m}"


class ApiKey(OwnedByProject, Base):
    """An API key. The key itself is shown once, when it is created."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    """When it stops working; null if it does not expire."""
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Time of its last use, to the minute."""


class ProjectUsage(OwnedByProject, Base):
    """What a project has used in one month. The rows outlive the jobs that they count."""

    __tablename__ = "project_usage"
    __table_args__ = (PrimaryKeyConstraint("project_id", "month"),)

    month: Mapped[str]
    """Such as `2030-01`, in UTC."""
    processor_s: Mapped[float] = mapped_column(default=0.0)
    """Duration of each attempt that ended in this month times its CPU threads, in seconds."""
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    """Requests to the API."""


class AuditEvent(OwnedByProject, Base):
    """Who did what, and when. It names things by their ids, and holds nothing of their content."""

    __tablename__ = "audit_events"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(index=True)
    action: Mapped[str]
    """Such as `job.cancelled`."""
    object_id: Mapped[str]
    """What was created, changed, deleted or downloaded. No foreign key: it may be deleted."""
    key_id: Mapped[str | None]
    """API key of the request. Null for the command line, and while no keys are used."""
    request_id: Mapped[str | None]
    """Id of the request, as in the log and in `x-request-id`. Null for the command line."""


class IdempotencyRecord(OwnedByProject, Base):
    """A request that made a job, remembered so that the same request makes no second one."""

    __tablename__ = "submissions"
    __table_args__ = (
        UniqueConstraint("project_id", "route", "key"),
        Index(None, "project_id", "route", "fingerprint", "created_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    route: Mapped[str]
    key: Mapped[str | None]
    """The caller's `Idempotency-Key`."""
    fingerprint: Mapped[str]
    """sha256 over who asks and what for."""
    created_at: Mapped[datetime] = mapped_column(index=True)
