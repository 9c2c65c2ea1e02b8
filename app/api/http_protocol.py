"""uvicorn's HTTP protocol with limits on a request's head, on time, and on connections.

uvicorn has no settings for these limits with httptools: see Kludex/uvicorn#157. The class that this
one extends is not documented, so `pyproject.toml` pins uvicorn's minor version.
"""

import asyncio
import logging
import resource
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from app.api.access import REQUEST_ID
from app.api.browser.security_headers import add_security_headers
from app.api.errors import RETRY_AFTER_S, error_response
from app.api.leaving import end_answer
from app.api.metrics import RequestMetrics
from app.api.requests import REFUSAL, UNREAD, log_access
from app.core.ids import IdPrefix, new_id
from app.core.logging import Tally
from app.core.settings import Settings

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and all headers, or of the trailers after a chunked body."""
_HEAD_TOO_LARGE = f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes."

PROGRESS_BYTES = 16 * 1024
"""Part of a body that must arrive within `receive_timeout_s`."""

_CHECKS_PER_TIMEOUT = 10
_MAX_CHECK_INTERVAL_S = 2.0
_OTHER_DESCRIPTORS = 256
"""File descriptors that are kept for the database, uploads, logs and libraries."""

_slow_senders = Tally(logger, logging.INFO, "Closed %d connections that sent a request too slowly.")
_slow_readers = Tally(logger, logging.INFO, "Closed %d connections that did not read an answer.")
_too_many = Tally(
    logger,
    logging.WARNING,
    "All connections are taken, so the API has closed or refused %d. Raise TUNERY_MAX_CONNECTIONS, "
    "or look for a client that opens too many.",
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on connections, with the meaning of the settings of the same names."""

    receive_timeout_s: float = 20.0
    max_receive_s: float = 3600.0
    send_timeout_s: float = 60.0
    max_connections: int = 2000


def bounded_protocol(settings: Settings, metrics: RequestMetrics) -> type["BoundedHttpProtocol"]:
    """The protocol with the limits of the settings, and no more connections than there are files.

    Raises the process's limit on open files as far as the system allows.

    Args:
        metrics: counts the requests that the protocol itself refuses.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A connection needs a second descriptor while it downloads a file.
    possible = max(1, (hard - _OTHER_DESCRIPTORS - settings.max_uploads) // 2)
    if possible < settings.max_connections:
        logger.warning(
            "The API accepts %d connections instead of %d, because the system allows it %d open "
            "files. Raise that limit (RLIMIT_NOFILE), or lower TUNERY_MAX_CONNECTIONS.",
            possible,
            settings.max_connections,
            hard,
        )
    limits = ConnectionLimits(
        receive_timeout_s=settings.receive_timeout_s,
        max_receive_s=settings.max_receive_s,
        send_timeout_s=settings.send_timeout_s,
        max_connections=min(possible, settings.max_connections),
    )
    members = {"limits": limits, "metrics": metrics}
    return type("ConfiguredHttpProtocol", (BoundedHttpProtocol,), members)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. It is closed if the client sends or reads too slowly."""

    limits: ClassVar[ConnectionLimits]
    metrics: ClassVar[RequestMetrics]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_bytes = 0
        """Bytes received since the last byte of a body or the end of a request."""
        self._awaited_since: float | None = None
        """Time of the last progress of a request that is arriving. None between requests."""
        self.message_since = 0.0
        """Time of the first byte of the last request, or of the connection."""
        self._is_in_body = False
        self._new_body_bytes = 0
        self._unsent_bytes = 0
        self._sent_at = 0.0
        self._next_check: asyncio.TimerHandle | None = None

    # What the transport reports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # pyright: ignore[reportArgumentType] - as uvicorn does
        self._awaited_since = self.message_since = self._sent_at = self.loop.time()
        self._schedule_check()
        if len(self.connections) > self.limits.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next_check is not None:
            self._next_check.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._sent_at = self.loop.time()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._awaited_since is None:
            self._awaited_since = self.message_since = self.loop.time()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(_HEAD_TOO_LARGE)

    def shutdown(self) -> None:
        """Close the connection after its answer. End an answer that would not end by itself."""
        super().shutdown()
        if self._request and (state := self._request.scope.get("state")) is not None:
            end_answer(state)

    # What the parser reports

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._awaited_since = self.loop.time()
        self._is_in_body = True
        self._new_body_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        self._new_body_bytes += len(body)
        if self._new_body_bytes >= PROGRESS_BYTES:
            self._awaited_since = self.loop.time()
            self._new_body_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._is_in_body = False
        self._awaited_since = None
        super().on_message_complete()

    # Limits

    def expect_next_request(self) -> None:
        """Begin the wait for the next request, after one that this class has not seen."""
        self._awaited_since = None
        self.message_since = self.loop.time()

    @property
    def is_waiting(self) -> bool:
        """Whether no request has arrived whose answer is not sent yet."""
        request = self._request
        return (request is None or request.response_complete) and not self._is_in_body

    @property
    def has_begun(self) -> bool:
        """Whether a part of the next request has arrived."""
        return self._is_in_body or self._head_bytes > 0

    @property
    def _request(self) -> RequestResponseCycle | None:
        """The last request whose head has arrived, and its answer."""
        return self.cycle

    def _schedule_check(self) -> None:
        limits = self.limits
        shortest = min(limits.receive_timeout_s, limits.send_timeout_s) / _CHECKS_PER_TIMEOUT
        self._next_check = self.loop.call_later(min(shortest, _MAX_CHECK_INTERVAL_S), self._check)

    def _check(self) -> None:
        now = self.loop.time()
        if self._is_stalled(now):
            _slow_readers.add(now)
            self.transport.abort()
            return
        if not self.transport.is_closing() and self._is_overdue(now):
            self._cut_off(now)
        self._schedule_check()

    def _is_stalled(self, now: float) -> bool:
        """Whether the client has read nothing for too long."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent_bytes:
            self._sent_at = now
        self._unsent_bytes = unsent
        return now - self._sent_at > self.limits.send_timeout_s

    def _is_overdue(self, now: float) -> bool:
        """Whether a request arrives too slowly. Time in which the API does not read is free."""
        if self._awaited_since is None:
            return False
        if self.flow.read_paused or not (self.is_waiting or self._is_in_body):
            self._awaited_since = now
        return (
            now - self._awaited_since > self.limits.receive_timeout_s
            or now - self.message_since > self.limits.max_receive_s
        )

    def _cut_off(self, now: float) -> None:
        if not self.has_begun:
            self.transport.close()
            return
        _slow_senders.add(now)
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            "The request did not arrive in time. Send it again over a faster connection.",
            code="request_timeout",
        )

    def _make_room(self) -> None:
        """Keep the limit on connections: close one that waits for a request, or this one."""
        others = cast("set[BoundedHttpProtocol]", self.connections) - {self}
        idle = [one for one in others if one.is_waiting and not one.transport.is_closing()]
        oldest = min(idle, key=lambda one: one.message_since, default=None)
        if oldest is not None:
            oldest.transport.abort()
        else:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The service has as many connections as it can serve. Send the request again in a "
                "moment.",
                code="too_many_connections",
            )
        _too_many.add(self.loop.time())

    # Answers without the application

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, msg, code="invalid_http")

    def _refuse(self, status: HTTPStatus, message: str, *, code: str) -> None:
        """Answer in the API's envelope, unless an answer is on its way, and close the connection.

        The application is told that the client has left.
        """
        request = self._request
        if self.is_waiting or request is None or not request.response_started:
            self._answer(status, message, code=code)
        if request is not None and not request.response_complete:
            request.disconnected = True
            request.message_event.set()
        self.transport.close()

    def _answer(self, status: HTTPStatus, message: str, *, code: str) -> None:
        answer = error_response(status, message, code=code)
        headers = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            (b"x-request-id", self._record(status, code).encode()),
            (b"connection", b"close"),
        ]
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        add_security_headers(headers)
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", answer.body]))

    def _record(self, status: HTTPStatus, code: str) -> str:
        """Log and count a refusal. Returns the id of the request.

        A request that the application has already is logged and counted there, once.
        """
        request = self._request
        is_queued = any(queued is request for queued, _ in self.pipeline)
        if request is not None and not request.response_complete and not is_queued:
            state = request.scope.setdefault("state", {})
            state[REFUSAL] = (status, code)
            return state.setdefault(REQUEST_ID, new_id(IdPrefix.REQUEST))
        request_id, seconds = new_id(IdPrefix.REQUEST), self.loop.time() - self.message_since
        log_access(UNREAD, status, seconds, request_id=request_id, code=code)
        self.metrics.observe_unread(status, seconds)
        return request_id
