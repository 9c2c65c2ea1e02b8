"""The audit trail: who did what, with which key."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from sqlalchemy import delete, select
from sqlalchemy.orm import aliased

from app.core.access import DEFAULT_PROJECT_ID, Caller
from app.core.db.base import Page, Repository
from app.core.db.project_tables import AuditEvent
from app.core.db.session import Session
from app.core.ids import IdPrefix, new_id

_SEARCHED = 1000
"""How many events of a project are searched for an earlier one, so that the time is bounded."""


class Action(StrEnum):
    """What was done. The names are stable and for programs."""

    JOB_CREATED = "job.created"
    JOB_RERUN = "job.rerun"
    JOB_CANCELLED = "job.cancelled"
    JOB_PAUSED = "job.paused"
    JOB_RESUMED = "job.resumed"
    JOB_DELETED = "job.deleted"
    SWEEP_CREATED = "sweep.created"
    REPORT_REQUESTED = "report.requested"
    ADAPTER_DOWNLOADED = "adapter.downloaded"
    FILE_UPLOADED = "file.uploaded"
    FILE_DOWNLOADED = "file.downloaded"
    FILE_DELETED = "file.deleted"
    MODEL_IMPORTED = "model.imported"
    MODEL_DELETED = "model.deleted"
    WEBHOOK_CREATED = "webhook_endpoint.created"
    WEBHOOK_UPDATED = "webhook_endpoint.updated"
    WEBHOOK_ROTATED = "webhook_endpoint.secret_rotated"
    WEBHOOK_DELETED = "webhook_endpoint.deleted"
    KEY_CREATED = "api_key.created"
    KEY_REVOKED = "api_key.revoked"
    PROJECT_UPDATED = "project.updated"
    PROJECT_ERASED = "project.erased"


def record(
    session: Session,
    by: Caller | None,
    action: Action,
    object_id: str,
    *,
    now: datetime,
    project_id: str | None = None,
) -> None:
    """Add an event to the transaction that makes the change.

    Args:
        by: whoever sent the request. None for the command line.
        object_id: what was created, changed, deleted or downloaded.
        project_id: project of the object. By default that of the caller, or the default project
            for the command line.
    """
    own_project_id = by.project_id if by else DEFAULT_PROJECT_ID
    event = AuditEvent(
        id=new_id(IdPrefix.AUDIT_EVENT),
        project_id=project_id or own_project_id,
        created_at=now,
        action=action,
        object_id=object_id,
        key_id=by and by.key_id,
        request_id=by and by.request_id,
    )
    session.add(event)


class AuditLog(Repository):
    """What was done in all projects."""

    def has_recent(
        self, by: Caller, action: Action, object_id: str, *, not_before: datetime
    ) -> bool:
        """Whether the same key has done this since a time, among the project's newest events."""
        newest = (
            select(AuditEvent)
            .where(AuditEvent.project_id == by.project_id)
            .order_by(AuditEvent.id.desc())
            .limit(_SEARCHED)
            .subquery()
        )
        event = aliased(AuditEvent, newest)
        is_same = (
            event.action == action,
            event.object_id == object_id,
            event.key_id.is_not_distinct_from(by.key_id),
            event.created_at >= not_before,
        )
        return self._session.scalar(select(event.id).where(*is_same).limit(1)) is not None

    def list_page(
        self, *, project_id: str | None, after: str | None, limit: int
    ) -> Page[AuditEvent]:
        """A page of events, newest first.

        Args:
            project_id: only what was done in this project.
            after: id of the event before the first one of the page.
        """
        query = select(AuditEvent).order_by(AuditEvent.id.desc()).limit(limit + 1)
        if project_id is not None:
            query = query.where(AuditEvent.project_id == project_id)
        if after is not None:
            query = query.where(AuditEvent.id < after)
        rows = list(self._session.scalars(query))
        return Page(rows[:limit], has_more=len(rows) > limit)

    def list_older(self, *, than: datetime, limit: int) -> Sequence[str]:
        """Ids of events from before a time, oldest first."""
        old = select(AuditEvent.id).where(AuditEvent.created_at < than)
        return self._session.scalars(old.order_by(AuditEvent.created_at).limit(limit)).all()

    def delete(self, event_ids: Sequence[str]) -> None:
        self._session.execute(delete(AuditEvent).where(AuditEvent.id.in_(event_ids)))
