"""Every query on idempotency records, which say which job a request made."""

from datetime import datetime, timedelta

from sqlalchemy import delete

from app.core.db.base import ProjectRepository, Repository
from app.core.db.project_tables import IdempotencyRecord
from app.core.db.session import lock_names
from app.core.db.tables import Job

KEPT_FOR = timedelta(days=7)
"""How long a record is kept at least, and a repeated request therefore recognized."""

_RETRY = "#retry"
"""Suffix of the stored route if the request that created the job was itself a retry."""


class IdempotencyRepository(ProjectRepository):
    """The idempotency records of one project."""

    def lock(self, route: str, name: str) -> None:
        """Wait until no other transaction handles the same request, and keep others waiting.

        Args:
            name: the request's key, or its fingerprint if it has none.
        """
        lock_names(self._session, self._project_id, route, name)

    def find_by_key(self, route: str, key: str) -> IdempotencyRecord | None:
        which = (IdempotencyRecord.route == route, IdempotencyRecord.key == key)
        return self._session.scalar(self._select(IdempotencyRecord).where(*which))

    def find_recent(
        self, route: str, fingerprint: str, *, since: datetime, by_retry: bool = False
    ) -> IdempotencyRecord | None:
        """The newest record of a request with this fingerprint and no key.

        Args:
            by_retry: only find a request that was itself a retry.
        """
        routes = [route + _RETRY] if by_retry else [route, route + _RETRY]
        query = self._select(IdempotencyRecord).where(
            IdempotencyRecord.route.in_(routes),
            IdempotencyRecord.key.is_(None),
            IdempotencyRecord.fingerprint == fingerprint,
            IdempotencyRecord.created_at >= since,
        )
        return self._session.scalar(query.order_by(IdempotencyRecord.created_at.desc()).limit(1))

    def add(
        self,
        job: Job,
        route: str,
        *,
        key: str | None,
        fingerprint: str,
        now: datetime,
        by_retry: bool = False,
    ) -> None:
        """Record which request made this job."""
        self._add(
            IdempotencyRecord(
                job_id=job.id,
                route=route + _RETRY if by_retry else route,
                key=key,
                fingerprint=fingerprint,
                created_at=now,
            )
        )


class OldIdempotencyRecords(Repository):
    """The idempotency records of every project."""

    def delete_older(self, *, than: datetime) -> None:
        """Delete the records that were created before this time."""
        old = IdempotencyRecord.created_at < than
        self._session.execute(delete(IdempotencyRecord).where(old))
