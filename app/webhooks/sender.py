"""Sends the queued events. It runs in every API process, as workers may have no way out.

An event is sent at least once: a process that dies between sending it and recording so leaves a
lease that ends, and the event is then sent again under the same id.
"""

import logging
import random
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus

from app.core.clock import Clock
from app.core.db.repositories.webhooks import Dispatch, WebhookQueue
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError
from app.webhooks.client import DeliveryError, WebhookClient
from app.webhooks.messages import build_body, build_headers
from app.webhooks.targets import TargetRefusedError

logger = logging.getLogger(__name__)

LEASE = timedelta(minutes=1)
"""Several times the limit for one attempt, so that no second sender begins during one."""

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 900.0
"""Each pause of an endpoint is twice as long as the one before, from the first to this one."""

_THREADS = 8
"""How many endpoints a process sends to at once: slow ones must not keep the others waiting."""
_POLL_S = 1.0
_PAUSE_AFTER_FAILURE_S = 5.0


class Sender:
    """Sends events until told to stop.

    Args:
        poll_s: interval at which an idle sender looks for new events, in seconds.
        jitter: a random number from 0 to 1 that makes a pause shorter or longer.
    """

    def __init__(
        self,
        database: Database,
        client: WebhookClient,
        *,
        clock: Clock,
        poll_s: float = _POLL_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._client = client
        self._clock = clock
        self._poll_s = poll_s
        self._jitter = jitter
        self._looking = threading.Lock()
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Generator[None]:
        """Send while the block runs. At its end, wait for the attempts that have begun."""
        threads = [threading.Thread(target=self._run, daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def send_next(self, *, wait_s: float = 0.0) -> bool:
        """Send one event if one is due. Returns whether there was one.

        Args:
            wait_s: how long to wait if there is none. All other threads wait as well, so that only
                one of them asks the database.
        """
        with self._looking:
            dispatch = None if self._stopping.is_set() else self._claim()
            if dispatch is None:
                self._stopping.wait(wait_s)
                return False
        self._send(dispatch)
        return True

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.send_next(wait_s=self._poll_s)
            except DatabaseBusyError:
                self._stopping.wait(self._poll_s)
            except Exception:  # the event is sent again once the lease has ended
                logger.exception("the sender of webhooks failed; trying again in a moment")
                self._stopping.wait(_PAUSE_AFTER_FAILURE_S)

    def _claim(self) -> Dispatch | None:
        with self._database.reading() as session:
            if not WebhookQueue(session).is_any_due(now=self._clock()):
                return None  # without keeping writers waiting just to find nothing
        with self._database.writing() as session:
            return WebhookQueue(session).claim(now=self._clock(), lease_for=LEASE)

    def _send(self, dispatch: Dispatch) -> None:
        error = self._attempt(dispatch)
        context = {"webhook_endpoint_id": dispatch.endpoint_id, "event_id": dispatch.event_id}
        now = self._clock()
        with self._database.writing() as session:
            queue = WebhookQueue(session)
            if error is None:
                queue.record_success(dispatch, now=now)
            else:
                retry_at = now + self._pause_after(dispatch.failures + 1)
                queue.record_failure(dispatch, error, now=now, retry_at=retry_at)
        if error is None:
            logger.info("webhook delivered", extra=context)
        else:
            logger.warning("webhook not delivered", extra={**context, "reason": error})

    def _attempt(self, dispatch: Dispatch) -> str | None:
        """Send an event. Returns why it was not accepted, or None if it was."""
        body = build_body(
            dispatch.event_id,
            dispatch.event_type,
            dispatch.job_id,
            happened_at=dispatch.created_at,
        )
        headers = build_headers(dispatch.event_id, body, dispatch.secrets, now=self._clock())
        try:
            status = self._client.post(dispatch.url, headers, body)
        except (DeliveryError, TargetRefusedError) as error:
            return str(error)
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return None
        return f"The endpoint answered with status {status}."

    def _pause_after(self, failures: int) -> timedelta:
        """Pause of an endpoint after so many pauses: between a half and the whole of its length."""
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 10))
        return timedelta(seconds=longest_s * (0.5 + self._jitter() / 2))
