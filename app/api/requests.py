"""Middleware for every request: limits its headers, gives it an id and answers a crash.

Routes of the class `StrictJsonRoute` accept only strict JSON.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.access import REQUEST_ID, PolicyRoute
from app.api.errors import ERROR_CODE, error_response
from app.core import strict_json
from app.core.clock import steady_s
from app.core.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError
from app.core.ids import IdPrefix, new_id

logger = logging.getLogger(__name__)
access = logging.getLogger("app.access")

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and all headers, or of the trailers after a chunked body."""

MAX_JSON_BYTES = 1024 * 1024

_PROBES = ("/healthz", "/readyz")
"""Paths that machines request every few seconds. They are logged at level debug."""
_MAX_LOGGED_PATH = 200


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
    """Middleware that gives each answer an `x-request-id` and a line in the log.

    It also answers unexpected exceptions in the envelope, before Starlette's own handler would
    answer in plain text and without an id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id(IdPrefix.REQUEST)
        started_s = steady_s()
        status: int | None = None
        state = scope.setdefault("state", {})
        state[REQUEST_ID] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request failed", extra={"request_id": request_id})
            if status is not None:
                raise
            response = error_response(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"The server failed on this request. Search its log for {request_id}.",
                code="internal_error",
            )
            await response(scope, receive, send_with_id)
        finally:
            seconds = steady_s() - started_s
            _log_access(scope, status, seconds, request_id, code=state.get(ERROR_CODE))


def _log_access(
    scope: Scope, status: int | None, seconds: float, request_id: str, *, code: str | None
) -> None:
    """Log one line for a request: its path, the status and, for an error, the code.

    Args:
        status: status of the answer; None if the client left before there was one.
    """
    # The raw path, because the decoded path could contain a line break.
    path = scope["raw_path"].decode("ascii", "replace")[:_MAX_LOGGED_PATH]
    level = logging.DEBUG if path in _PROBES else logging.INFO
    context = {"request_id": request_id} | ({"code": code} if code else {})
    what = (scope["method"], path, status or "no answer", 1000 * seconds)
    access.log(level, "%s %s %s %.0f ms", *what, extra=context)


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
