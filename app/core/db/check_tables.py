"""The table of data checks: what was found in the data of a job before it trains."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.base import Base, OwnedByProject

_KEPT = text("files IS NOT NULL")
_HELD = text("worker_id IS NOT NULL")


class DataCheck(OwnedByProject, Base):
    """The check of one job's data. It is done while the job is `validating_files`."""

    __tablename__ = "data_checks"
    __table_args__ = (
        CheckConstraint("(worker_id IS NOT NULL) = (lease_expires_at IS NOT NULL)", "leased"),
        Index(None, "project_id", "started_at"),
        Index("ix_data_checks_kept", "job_id", sqlite_where=_KEPT, postgresql_where=_KEPT),
        Index("ix_data_checks_held", "worker_id", sqlite_where=_HELD, postgresql_where=_HELD),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(default=0)
    """Number of the newest try. Older tries can no longer write."""
    worker_id: Mapped[str | None]
    """Worker that checks the data. Null while nobody does."""
    lease_expires_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    """When the newest try began."""
    finished_at: Mapped[datetime | None]
    crashes: Mapped[int] = mapped_column(default=0)
    """How many tries ended because their process died by itself."""
    report: Mapped[dict[str, Any] | None]
    """A `DataReport`. Null until the check is done."""
    files: Mapped[dict[str, Any] | None]
    """Blob key, bytes and sha256 of each file of tokens, by name. Null once the job has ended."""
