"""Writes the audit trail, in the transaction of what it records."""

from datetime import datetime

from app.core.access import Caller
from app.core.db.repositories.projects.audit import Action, AuditRepository
from app.core.db.session import Session

__all__ = ["Action", "record"]


def record(
    session: Session, caller: Caller, action: Action, object_id: str, *, now: datetime
) -> None:
    """Record that the caller does something to the object with this id, in its project."""
    AuditRepository(session, caller.project_id).record(action, object_id, now=now, by=caller)
