"""Middleware for every request: limits its headers, gives it an id and answers a crash.

Routes of the class `StrictJsonRoute` accept only strict JSON.
"""

import logging
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.access import CALLER, REQUEST_ID, PolicyRoute
from app.api.deps import JOB_ID
from app.api.errors import ERROR_CODE, error_response
from app.api.metrics import RequestMetrics
from app.api.security_headers import add_security_headers
from app.core import strict_json
from app.core.access import Caller
from app.core.clock import steady_s
from app.core.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError
from app.core.ids import IdPrefix, new_id
from app.core.logging import log_context

logger = logging.getLogger(__name__)
access = logging.getLogger("app.access")

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and all headers, or of the trailers after a chunked body."""

MAX_JSON_BYTES = 1024 * 1024

_PROBES = ("/healthz", "/readyz")
"""Paths that machines request every few seconds. They are logged at level debug."""
_MAX_LOGGED_PATH = 200
_JOB_ID = re.compile(rf"(?<=/jobs/){IdPrefix.JOB}[0-9a-z]+")
_OUTCOMES = {4: "refused", 5: "failed"}


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which itself does not limit the head of a request.

    It builds on a class that uvicorn does not document. uvicorn has no setting for this limit with
    httptools: see Kludex/uvicorn#157.
    """

    _pending_bytes = 0
    """Bytes received since the last byte of a body or the end of a request."""

    def data_received(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        super().data_received(data)
        if self._pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(
                f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes."
            )

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending_bytes = 0
        super().on_message_complete()


class RequestContext:
    """Middleware that gives each request an id, a line in the log and a place in the metrics.

    It also answers unexpected exceptions in the envelope, before Starlette's own handler would
    answer in plain text and without an id.
    """

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        request_id = exchange.request_id
        scope.setdefault("state", {})[REQUEST_ID] = request_id
        try:
            with log_context(request_id=request_id):
                await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            logger.exception("request failed", extra={"request_id": request_id})
            if exchange.status is not None:
                raise
            response = error_response(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"The server failed on this request. Search its log for {request_id}.",
                code="internal_error",
            )
            await response(scope, receive, exchange.send)
        finally:
            self._metrics.observe(scope, exchange.status, exchange.seconds, exchange.received_bytes)
            exchange.log()


class _Exchange:
    """One request and its answer, as the log and the metrics see them.

    Attributes:
        status: status of the answer; None until it begins.
        received_bytes: size of the request's body so far.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started_s = steady_s()
        self.request_id = new_id(IdPrefix.REQUEST)
        self.status: int | None = None
        self.received_bytes = 0

    @property
    def seconds(self) -> float:
        """Time since the head of the request."""
        return steady_s() - self._started_s

    async def receive(self) -> Message:
        message = await self._receive()
        self.received_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            add_security_headers(headers)
            message["headers"] = headers
        await self._send(message)

    def log(self) -> None:
        """Log one line: the path, the status, who asked for which job, and how it went."""
        scope, state = self._scope, self._scope["state"]
        # The raw path, because the decoded path could contain a line break.
        path = scope["raw_path"].decode("ascii", "replace")[:_MAX_LOGGED_PATH]
        job = _JOB_ID.search(path)
        caller: Caller | None = state.get(CALLER)
        context = {
            "request_id": self.request_id,
            "outcome": _OUTCOMES.get(self.status // 100, "ok") if self.status else "abandoned",
            "code": state.get(ERROR_CODE),
            "project": caller and caller.project_id,
            "key_id": caller and caller.key_id,
            "job_id": state.get(JOB_ID) or (job and job[0]),
        }
        level = logging.DEBUG if path in _PROBES else logging.INFO
        what = (scope["method"], path, self.status or "no answer", 1000 * self.seconds)
        known = {name: value for name, value in context.items() if value is not None}
        access.log(level, "%s %s %s %.0f ms", *what, extra=known)


class _StrictRequest(Request):
    """A request whose JSON is limited in size and cannot be read in two ways."""

    async def stream(self) -> AsyncGenerator[bytes]:
        size = 0
        async for chunk in super().stream():
            size += len(chunk)
            if size > MAX_JSON_BYTES:  # before FastAPI has collected it all in memory
                raise PayloadTooLargeError(
                    f"The body is larger than {MAX_JSON_BYTES // 2**20} MiB."
                )
            yield chunk

    async def json(self) -> Any:
        try:
            return strict_json.loads(await self.body())
        except strict_json.StrictJsonError as error:
            raise InvalidRequestError(
                f"The body is not valid JSON: {error}.", code="invalid_json"
            ) from error


class StrictJsonRoute(PolicyRoute):
    """A route whose body, if it has one, must be declared as JSON and be strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip()
            if self._takes_body_of(request) and media_type.lower() != "application/json":
                raise UnsupportedMediaTypeError(
                    "Send the body as JSON, with the header 'Content-Type: application/json'."
                )
            return await handler(_StrictRequest(request.scope, request.receive))

        return handle

    def _takes_body_of(self, request: Request) -> bool:
        """Whether the request has a body to read. An optional body can be absent with its type."""
        if self.body_field is None or self.body_field.field_info.is_required():
            return self.body_field is not None
        has_length = request.headers.get("content-length", "0") != "0"
        return has_length or "transfer-encoding" in request.headers
