"""Middleware for every request: limits its headers, gives it an id and answers a crash.

Routes of the class `StrictJsonRoute` accept only strict JSON, and not more than the API needs.
"""

import logging
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from typing import Any, NamedTuple

from anyio import to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import CALLER, REQUEST_ID, PolicyRoute
from app.api.browser.security_headers import add_security_headers
from app.api.deps import JOB_ID
from app.api.errors import ERROR_CODE, MAX_ECHO, error_response
from app.api.metrics import SAMPLED, WAITED_S, RequestMetrics, Sampled
from app.core import strict_json
from app.core.access import Caller
from app.core.clock import steady_s
from app.core.dataset.rows.fields import is_object
from app.core.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError
from app.core.ids import IdPrefix, new_id
from app.core.logging import log_context

logger = logging.getLogger(__name__)
access = logging.getLogger("app.access")

MAX_JSON_BYTES = 1024 * 1024
_MAX_JSON_VALUES = 30_000
_MAX_JSON_KEYS = 1000
"""Maximum number of keys of an object. JSON schemas have up to some hundreds, and nothing else that
the API knows has more than 100."""
_MAX_JSON_DEPTH = 64
_QUICK_JSON_BYTES = 16 * 1024
"""Size up to which a body is parsed at once, as a switch to another thread would take longer."""

REFUSAL = "refusal"
"""Key in the state of a request that holds the status and the error code with which the connection
has answered it, while the application had it."""

_PROBES = ("/healthz", "/readyz")
"""Paths that machines request every few seconds. They are logged at level debug."""
_MAX_LOGGED_PATH = 200
_JOB_ID = re.compile(rf"(?<=/jobs/){IdPrefix.JOB}[0-9a-z]+")
_OUTCOMES = {4: "refused", 5: "failed"}


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
        scope.setdefault("state", {}).setdefault(REQUEST_ID, new_id(IdPrefix.REQUEST))
        exchange = _Exchange(scope, receive, send)
        request_id = exchange.request_id
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
            exchange.record(self._metrics)


class _Exchange:
    """One request and its answer, as the log and the metrics see them.

    Attributes:
        status: status of the application's answer; None until it begins.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started_s = steady_s()
        self.request_id: str = scope["state"][REQUEST_ID]
        self.status: int | None = None
        self._received_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.request_id.encode())]
            add_security_headers(headers)
            message["headers"] = headers
        await self._send(message)

    def record(self, metrics: RequestMetrics) -> None:
        """Count the request, and log who asked for which job, and how it went."""
        scope, state = self._scope, self._scope["state"]
        status, code = state.get(REFUSAL) or (self.status, state.get(ERROR_CODE))
        seconds = steady_s() - self._started_s
        answering_s = seconds - state.get(WAITED_S, 0.0)
        metrics.observe(scope, status, answering_s, self._received_bytes)
        sampled: Sampled | None = state.get(SAMPLED)
        context = {"code": code, **(_describe_sampled(sampled) if sampled else {})}
        request = LoggedRequest.of(scope)
        log_access(request, status, seconds, request_id=self.request_id, **context)


def _describe_sampled(sampled: Sampled) -> dict[str, str | None]:
    first_s = sampled.first_token_s
    return {
        "prompt_tokens": str(sampled.prompt_tokens),
        "cached_tokens": str(sampled.cached_tokens),
        "completion_tokens": str(sampled.completion_tokens),
        "first_token_ms": None if first_s is None else f"{1000 * first_s:.0f}",
    }


class LoggedRequest(NamedTuple):
    """What the log says of a request, besides its id and its answer."""

    method: str
    path: str
    project: str | None = None
    key_id: str | None = None
    job_id: str | None = None

    @classmethod
    def of(cls, scope: Scope) -> "LoggedRequest":
        # The raw path, because the decoded path could contain a line break.
        path = scope["raw_path"].decode("ascii", "replace")[:_MAX_LOGGED_PATH]
        job = _JOB_ID.search(path)
        caller: Caller | None = scope["state"].get(CALLER)
        return cls(
            scope["method"],
            path,
            project=caller and caller.project_id,
            key_id=caller and caller.key_id,
            job_id=scope["state"].get(JOB_ID) or (job and job[0]),
        )


UNREAD = LoggedRequest("-", "-")
"""A request that was refused before its head was read."""


def log_access(
    request: LoggedRequest,
    status: int | None,
    seconds: float,
    *,
    request_id: str,
    **context: str | None,
) -> None:
    """Log the one line that each request gets, without what is not known of it.

    Args:
        status: status of the answer; None if the client left before there was one.
    """
    outcome = _OUTCOMES.get(status // 100, "ok") if status else "abandoned"
    method, path, *_ = request
    context |= {"project": request.project, "key_id": request.key_id, "job_id": request.job_id}
    known = {name: value for name, value in context.items() if value is not None}
    extra = {"request_id": request_id, "outcome": outcome, **known}
    level = logging.DEBUG if path in _PROBES else logging.INFO
    what = (method, path, status or "no answer", 1000 * seconds)
    access.log(level, "%s %s %s %.0f ms", *what, extra=extra)


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
        raise _too_complex(f"an object with more than {_MAX_JSON_KEYS:,} keys", _find_wide(value))
    if strict_json.is_deeper(value, _MAX_JSON_DEPTH):
        raise _too_complex(f"more than {_MAX_JSON_DEPTH} levels")
    return value


def _find_wide(body: Any) -> str | None:
    """The parameter in which an object has too many keys. None if it is the body itself."""
    for name, value in body.items() if is_object(body) else ():
        if strict_json.has_wider_object(value, _MAX_JSON_KEYS):
            return name[:MAX_ECHO]
    return None


def _too_complex(why: str, param: str | None = None) -> InvalidRequestError:
    where = f" in '{param}'" if param else ""
    return InvalidRequestError(
        f"The body has {why}{where}. See docs/api.md.", code="json_too_complex", param=param
    )


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


class OpenStrictJsonRoute(APIRoute):
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


class StrictJsonRoute(OpenStrictJsonRoute, PolicyRoute):
    """A route that takes strict JSON, and refuses callers without the scope that it `needs`."""
