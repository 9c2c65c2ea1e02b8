"""What holds for every request: an id, bounded and strict JSON, and an envelope for a crash."""

import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import ERROR_CODE, error_response
from app.core import strict_json
from app.core.clock import steady_s
from app.core.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError
from app.core.ids import IdPrefix, new_id

logger = logging.getLogger(__name__)
access = logging.getLogger("app.access")

MAX_JSON_BYTES = 1024 * 1024


_PROBES = ("/healthz", "/readyz")
"""Paths that a machine asks for every few seconds: logged only at level debug."""
_MAX_LOGGED_PATH = 200


class RequestContext:
    """Gives each answer its `x-request-id` and its line in the log, and a crash its envelope.

    It catches what nobody expected before Starlette's own handler would, whose plain-text answer
    has neither.
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
                f"The server failed on this request. Its log says why under {request_id}.",
                code="internal_error",
            )
            await response(scope, receive, send_with_id)
        finally:
            _log_access(
                scope,
                status=status,
                seconds=steady_s() - started_s,
                request_id=request_id,
                code=state.get(ERROR_CODE),
            )


def _log_access(
    scope: Scope, *, status: int | None, seconds: float, request_id: str, code: str | None
) -> None:
    """One line for a request: what was asked, what was answered, and the code of an error.

    Args:
        status: of the answer; None when the client was gone before there was one.
    """
    # As the client sent it: decoded, it could hold a line break.
    path = scope["raw_path"].decode("ascii", "replace")[:_MAX_LOGGED_PATH]
    level = logging.DEBUG if path in _PROBES else logging.INFO
    context = (
        {"request_id": request_id} if code is None else {"request_id": request_id, "code": code}
    )
    answer = status or "no answer"
    access.log(
        level, "%s %s %s %.0f ms", scope["method"], path, answer, 1000 * seconds, extra=context
    )


class _StrictRequest(Request):
    """A request whose JSON is bounded in size and means the same to every reader."""

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


class StrictJsonRoute(APIRoute):
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
        """Whether there is a body to be read; where it may be left out, its type may be, too."""
        if self.body_field is None or self.body_field.field_info.is_required():
            return self.body_field is not None
        has_length = request.headers.get("content-length", "0") != "0"
        return has_length or "transfer-encoding" in request.headers
