"""Recognizes a request that has already made a job, also one without training: an import.

The caller owns the transaction.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from app.core.access import Caller
from app.core.db.project_tables import IdempotencyRecord
from app.core.db.repositories.idempotency import KEPT_FOR, IdempotencyRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.errors import InvalidRequestError

Route = Literal["create", "rerun", "import", "sweep"]

_GRACE = timedelta(seconds=60)
"""Time added to a client's timeouts for its pauses between retries and for the network."""


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """What the headers of a request say about its sender, its key and its retries."""

    key: str | None
    """The caller's `Idempotency-Key`."""
    credentials_sha256: str
    retry_count: int
    """How often the client has already sent this request; 0 if it does not say."""
    timeout: timedelta
    """How long the client waits for an answer before it sends the request again."""


@dataclass
class IdempotentRequest:
    """A request that makes at most one job, however often it is sent.

    Two requests are the same if they have the same key. Without a key, they are the same if the
    same sender asks for the same thing and the client says that it is retrying.
    """

    session: Session
    caller: Caller
    origin: RequestOrigin
    route: Route
    content: Mapping[str, Any]
    """What the request asks for, as JSON in one form for every way to write it."""
    now: datetime
    """When the request came in, before it waited for anything."""

    def __post_init__(self) -> None:
        self._records = IdempotencyRepository(self.session, self.caller.project_id)
        self._fingerprint = _fingerprint(self.origin, self.content)

    def find_job(self) -> Job | None:
        """The job that this request made when it was sent before.

        Until the transaction ends, the same request waits here in every other transaction.

        Raises:
            InvalidRequestError: the key belongs to another request.
        """
        self._records.lock(self.route, self.origin.key or self._fingerprint)
        record = self._find_record()
        if record is None:
            return None
        return JobRepository(self.session, self.caller.project_id).get(record.job_id)

    def remember(self, job: Job) -> None:
        """Record that this request made the job."""
        self._records.add(
            job,
            self.route,
            key=self.origin.key,
            fingerprint=self._fingerprint,
            now=self.now,
            by_retry=self.origin.key is None and self.origin.retry_count > 0,
        )

    def _find_record(self) -> IdempotencyRecord | None:
        origin, now = self.origin, self.now
        if origin.key is not None:
            return self._find_by_key(origin.key)
        if origin.retry_count:
            # Each earlier try may have taken as long as the client waits for an answer.
            window = min(origin.timeout * origin.retry_count + _GRACE, KEPT_FOR)
            return self._records.find_recent(self.route, self._fingerprint, since=now - window)
        # The client may have given up while this first try waited for the database, and its retry
        # may have been served before it.
        return self._records.find_recent(self.route, self._fingerprint, since=now, by_retry=True)

    def _find_by_key(self, key: str) -> IdempotencyRecord | None:
        record = self._records.find_by_key(self.route, key)
        if record is not None and record.fingerprint != self._fingerprint:
            raise InvalidRequestError(
                f"The Idempotency-Key {key[:80]!r} was already used with another body, which made "
                f"the job {record.job_id}. Use a new key for each new job.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        return record


def _fingerprint(origin: RequestOrigin, content: Mapping[str, Any]) -> str:
    """SHA-256 of what the request asks for and, if it has no key, of who sends it."""
    who = None if origin.key is not None else origin.credentials_sha256
    text = json.dumps([who, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
