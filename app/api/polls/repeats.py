"""Answers a poll again whose bytes were answered before, without parsing them again.

To parse a request, route it and log it takes several times as long as to look its answer up. The
same bytes are the same request of the same caller, so only what changes with time is checked again:
the version of the database, the key, and the project's limit.
"""

from http import HTTPStatus

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.api.admission.authentication import AUTHENTICATED, Authenticated, Authenticator
from app.api.admission.token_buckets import TokenBuckets
from app.api.browser.security_headers import add_security_headers
from app.api.metrics import RequestMetrics
from app.api.polls.memory import Headers, Memory, Reply
from app.api.polls.poll_log import PollLog
from app.api.requests import LoggedRequest
from app.core.clock import steady_s

REQUEST_BYTES = "request_bytes"
"""Key in the state of a request that holds all its bytes. Absent unless they came alone and in one
piece, over a connection that stays open."""


class Repeats:
    """Replies that may be sent again for the same bytes. Use it from the event loop only."""

    def __init__(
        self,
        memory: Memory,
        *,
        authenticator: Authenticator,
        buckets: TokenBuckets,
        metrics: RequestMetrics,
    ) -> None:
        self.memory = memory
        self._authenticator = authenticator
        self._buckets = buckets
        self._metrics = metrics
        self._log = PollLog()

    def keep(
        self, scope: Scope, route: str, status: HTTPStatus, headers: Headers, body: bytes
    ) -> None:
        """Remember what is sent for a request, if its bytes are known.

        Args:
            headers: those of the answer, without those that every answer gets.
        """
        state = scope["state"]
        if REQUEST_BYTES not in state:
            return
        complete = [*headers]
        add_security_headers(complete)
        reply = Reply(
            state[AUTHENTICATED],
            LoggedRequest.of(scope),
            self._metrics.durations_of(route, "GET", status),
            status,
            _lines(complete),
            body,
        )
        self.memory.keep_reply(state[REQUEST_BYTES], reply)

    def answer(self, request: bytes, extra: Headers) -> bytes | None:
        """The bytes of the answer, or None if the request has to be read.

        Args:
            request: what has arrived on a connection on which nothing else is under way.
            extra: headers that the server adds to every answer.
        """
        if request not in self.memory.replies:
            return None
        began_s = steady_s()
        version = self.memory.refresh()
        reply = self.memory.replies.get(request)
        if reply is None or not self._admits(reply.authenticated, version):
            return None
        seconds = steady_s() - began_s
        reply.durations.observe(seconds)
        request_id = self._log.count(reply.request, reply.status, seconds)
        head = _lines([*extra, (b"x-request-id", request_id.encode())])
        return b"".join([STATUS_LINE[reply.status], head, reply.head, b"\r\n", reply.body])

    def close(self) -> None:
        """Log what is not logged yet. No request may come any more."""
        self._log.flush()

    def _admits(self, known: Authenticated, version: int | None) -> bool:
        """Whether the caller may send another request now, which is counted if so."""
        if not self._authenticator.knows(known, version):
            return False
        limit = known.max_requests_per_minute
        if limit is not None and self._buckets.take(known.caller.project_id, per_minute=limit):
            return False
        self._authenticator.note_use(known.caller)
        return True


def _lines(headers: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
