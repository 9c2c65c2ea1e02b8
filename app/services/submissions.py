"""One request, one job, however often the request comes. The caller owns the transaction."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.submissions import REMEMBERED_FOR, SubmissionRepository
from app.core.db.session import Session
from app.core.db.tables import Job, Submission
from app.core.errors import InvalidRequestError

Route = Literal["create", "rerun"]

_GRACE = timedelta(seconds=60)
"""Of a client that retries by itself: its pauses between tries, and the way of its requests."""


@dataclass(frozen=True, slots=True)
class Sender:
    """What the headers of a request say about who sends it, and whether for the first time."""

    key: str | None
    """The caller's `Idempotency-Key`."""
    credentials_sha256: str
    retry_count: int
    """How often the client has already sent this request by itself; 0 when it does not say."""
    timeout: timedelta
    """How long the client waits for an answer before it sends the request again."""


@dataclass(frozen=True, slots=True)
class Submitted:
    job: Job
    is_replay: bool
    """Whether the job was there already, made by an earlier sending of the same request."""


def submit_once(
    session: Session,
    sender: Sender,
    route: Route,
    content: Mapping[str, Any],
    make_job: Callable[[], Job],
    *,
    now: datetime,
) -> Submitted:
    """Make a job, or find the one that this very request has made before.

    Requests are the same by their key or, without one, by who sends what, if the client says
    that it is sending again.

    Args:
        content: what is asked for, in JSON, the same for every way to write it.
        now: when the request came in, before it waited for anything.

    Raises:
        InvalidRequestError: the key belongs to another request.
    """
    submissions = SubmissionRepository(session)
    fingerprint = _fingerprint(sender, content)
    submissions.lock(route, sender.key or fingerprint)
    found = _find(submissions, sender, route, fingerprint, now=now)
    if found is not None:
        return Submitted(JobRepository(session).get(found.job_id), is_replay=True)
    job = make_job()
    submissions.add(
        job,
        route,
        key=sender.key,
        fingerprint=fingerprint,
        now=now,
        by_retry=sender.key is None and sender.retry_count > 0,
    )
    return Submitted(job, is_replay=False)


def _find(
    submissions: SubmissionRepository,
    sender: Sender,
    route: Route,
    fingerprint: str,
    *,
    now: datetime,
) -> Submission | None:
    if sender.key is not None:
        found = submissions.find_by_key(route, sender.key)
        if found is not None and found.fingerprint != fingerprint:
            raise InvalidRequestError(
                f"The Idempotency-Key {sender.key[:80]!r} was sent before, with another body; that "
                f"made the job {found.job_id}. Take a new key for each new job.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        return found
    if sender.retry_count:
        # The first try may have come that long ago: each try waited until the client lost patience.
        window = min(sender.timeout * sender.retry_count + _GRACE, REMEMBERED_FOR)
        return submissions.find_recent(route, fingerprint, since=now - window)
    # Its client may have lost patience while this waited for the database, and its retry, which
    # came later, may have been served first.
    return submissions.find_recent(route, fingerprint, since=now, by_retry=True)


def _fingerprint(sender: Sender, content: Mapping[str, Any]) -> str:
    """sha256 over what is asked for and, where no key says it, who asks."""
    who = None if sender.key is not None else sender.credentials_sha256
    text = json.dumps([who, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
