"""Middleware for every request: limits its headers, gives it an id and answers a crash.

Routes of the class `StrictJsonRoute` accept only strict JSON, and not more than the API needs.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import REQUEST_ID, PolicyRoute
from app.api.errors import ERROR_CODE, MAX_ECHO, error_response
from app.core import strict_json
from app.core.clock import steady_s
from app.core.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError
from app.core.ids import IdPrefix, new_id

logger = logging.getLogger(__name__)
access = logging.getLogger("app.access")

MAX_JSON_BYTES = 1024 * 1024
_MAX_JSON_VALUES = 30_000
_MAX_JSON_KEYS = 100
"""Maximum number of keys of an object. None that the API knows has half as many."""
_MAX_JSON_DEPTH = 64
_QUICK_JSON_BYTES = 16 * 1024
"""Size up to which a body is parsed at once, as a switch to another thread would take longer."""

_PROBES = ("/healthz", "/readyz")
"""Paths that machines request every few seconds. They are logged at level debug."""
_MAX_LOGGED_PATH = 200


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
        body = await self.body()
        if len(body) <= _QUICK_JSON_BYTES:
            return _parse(body)
        return await to_thread.run_sync(_parse, body)


def _parse(body: bytes) -> Any:
    """Parse JSON that every later step handles quickly, also if all of it is wrong.

    Raises:
        InvalidRequestError: it is not strict JSON, or larger than any that the API needs.
    """
    if strict_json.has_more_values(body, _MAX_JSON_VALUES):
        raise _too_complex(f"more than {_MAX_JSON_VALUES:,} values")
    try:
        value = strict_json.loads(body)
    except strict_json.StrictJsonError as error:
        raise InvalidRequestError(
            f"The body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    if strict_json.has_wider_object(value, _MAX_JSON_KEYS):
        raise _too_complex(f"an object with more than {_MAX_JSON_KEYS} keys")
    if strict_json.is_deeper(value, _MAX_JSON_DEPTH):
        raise _too_complex(f"more than {_MAX_JSON_DEPTH} levels")
    return value


def _too_complex(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The body has {why}. See docs/api.md.", code="json_too_complex")


def require_no_content_encoding(request: Request) -> None:
    """Refuse a compressed body, which would otherwise be read as if it were not compressed.

    Raises:
        UnsupportedMediaTypeError: the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaTypeError(
            f"The service does not decompress requests. Send the body without the header "
            f"'Content-Encoding: {encoding[:MAX_ECHO]}', and not compressed."
        )


class StrictJsonRoute(PolicyRoute):
    """A route whose body, if it has one, must be declared as JSON and be strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            require_no_content_encoding(request)
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
