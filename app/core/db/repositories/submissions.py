"""Every query on submissions: the requests that made jobs, remembered lest they make another."""

from datetime import datetime, timedelta

from sqlalchemy import Select, delete, select

from app.core.db.base import DEFAULT_PROJECT_ID
from app.core.db.session import Session, lock_names
from app.core.db.tables import Job, Submission

REMEMBERED_FOR = timedelta(days=7)
"""How long a key is certain to be known; whoever cleans up may delete what is older."""

_RETRY = "#retry"
"""Ends the route of a job that a client's retry has made, before or instead of its first try."""


class SubmissionRepository:
    """The submissions of one project."""

    def __init__(self, session: Session, project_id: str = DEFAULT_PROJECT_ID) -> None:
        self._session = session
        self._project_id = project_id

    def lock(self, route: str, name: str) -> None:
        """Wait until no other transaction deals with the same request; hold until this one ends.

        Args:
            name: the request's key, or its fingerprint where it has none.
        """
        lock_names(self._session, self._project_id, route, name)

    def find_by_key(self, route: str, key: str) -> Submission | None:
        return self._session.scalar(
            self._select().where(Submission.route == route, Submission.key == key)
        )

    def find_recent(
        self, route: str, fingerprint: str, *, since: datetime, by_retry: bool = False
    ) -> Submission | None:
        """The newest request of this fingerprint that had no key.

        Args:
            by_retry: only one that was itself a retry.
        """
        routes = [route + _RETRY] if by_retry else [route, route + _RETRY]
        query = self._select().where(
            Submission.route.in_(routes),
            Submission.key.is_(None),
            Submission.fingerprint == fingerprint,
            Submission.created_at >= since,
        )
        return self._session.scalar(query.order_by(Submission.created_at.desc()).limit(1))

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
        """Remember what made this job."""
        self._session.add(
            Submission(
                job_id=job.id,
                project_id=self._project_id,
                route=route + _RETRY if by_retry else route,
                key=key,
                fingerprint=fingerprint,
                created_at=now,
            )
        )
        self._session.flush()

    def delete_older(self, *, than: datetime) -> None:
        """Forget the requests of every project that came before this."""
        self._session.execute(delete(Submission).where(Submission.created_at < than))

    def _select(self) -> Select[Submission]:
        return select(Submission).where(Submission.project_id == self._project_id)
