"""Answers every error in OpenAI's envelope: {"error": {message, type, param, code}}."""

import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from app.core.disk import as_storage_full
from app.core.errors import (
    DatabaseAwayError,
    NotFoundError,
    OutcomeUnknownError,
    QuotaExceededError,
    RateLimitError,
    ServiceError,
    StoreAwayError,
    UnauthenticatedError,
)
from app.schemas.bodies import dotted, nearest_field
from app.schemas.hyperparameters import hint_for

logger = logging.getLogger(__name__)

MAX_ECHO = 200
"""Maximum number of characters of a request that an error message repeats."""

_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unsupported_method": "unsupported_method",
    "unsupported_integration": "unsupported_integration",
    "unsupported_parameter": "unsupported_parameter",
}
RETRY_AFTER_S = 2
ERROR_CODE = "error_code"
"""Key in the state of a request that holds the error code of its answer."""

_MAX_PROBLEMS = 50
"""Maximum number of problems of a body that the answer lists."""

_NOT_OFFERED = re.compile(
    r"""/(
    agents|answers|assistants|audio|batches|chat|chatkit|classifications|completions|
    containers|content_provenance_checks|conversations|decisions|edits|embeddings|engines|
    evals|fine-tunes|fine_tuning/alpha|fine_tuning/checkpoints|images|live|moderations|
    organization|projects|realtime|responses|safety|skills|threads|vaults|vector_stores|
    videos
    )/""",
    re.VERBOSE,
)
"""Paths below /v1 of OpenAI's API, today or for earlier clients, that are not offered here."""


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OSError, _os_error)


def error_response(
    status: int,
    message: str,
    *,
    code: str | None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """The envelope. `extra` is added inside `error`, where OpenAI's clients keep it."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code, **extra}
    return _ErrorResponse({"error": error}, code=code, status_code=status, headers=headers)


class _ErrorResponse(JSONResponse):
    """Stores its error code in the state of the request, for the access log."""

    def __init__(self, content: Any, *, code: str | None, **options: Any) -> None:
        super().__init__(content, **options)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][ERROR_CODE] = self._code
        await super().__call__(scope, receive, send)


async def _service_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return service_error_response(error)


def service_error_response(error: ServiceError) -> JSONResponse:
    """The answer to a request that failed with this error."""
    if isinstance(error, DatabaseAwayError | StoreAwayError):
        logger.warning("%s", error.for_operator)
    extra: dict[str, Any] = {}
    if error.problems:
        extra["errors"] = [problem.model_dump() for problem in error.problems]
        extra["error_count"] = len(error.problems)
        if error.is_partial:
            extra["error_count_is_minimum"] = True
    return error_response(
        error.status_code,
        str(error),
        code=error.code,
        param=error.param,
        headers=_headers_of(error),
        **extra,
    )


def _headers_of(error: ServiceError) -> dict[str, str] | None:
    if error.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"retry-after": str(RETRY_AFTER_S)}
    if isinstance(error, UnauthenticatedError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, RateLimitError):
        return {"retry-after": str(error.retry_after_s)}
    if isinstance(error, OutcomeUnknownError | QuotaExceededError):
        return {"x-should-retry": "false"}  # OpenAI's clients repeat other 5xx and 429 themselves
    return None


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """Answer 400 like OpenAI's API, not FastAPI's 422."""
    assert isinstance(error, RequestValidationError)
    body_field = getattr(request.scope.get("route"), "body_field", None)
    body_type = body_field and body_field.field_info.annotation
    found = error.errors()
    problems = [_describe(each, body_type) for each in found[:_MAX_PROBLEMS]]
    first = problems[0]
    more = f" And {len(found) - 1} more; see 'errors'." if len(found) > 1 else ""
    return error_response(
        HTTPStatus.BAD_REQUEST,
        f"{first['message']}{more}",
        code=first["code"],
        param=first["path"] or None,
        errors=problems,
        error_count=len(found),
    )


def _describe(error: dict[str, Any], body_type: Any) -> dict[str, str]:
    """One of pydantic's errors as a problem, without its `input`, which may be huge or not JSON."""
    source, *path = error["loc"]
    is_key = path[-1:] == ["[key]"]
    shown = dotted(path[:-2] if is_key else path)[:MAX_ECHO]
    code = _CODES.get(error["type"], "invalid_value")
    if not path:
        return {"path": "", "code": code, "message": "The body must be a JSON object."}
    if code == "unknown_parameter" and source == "body":
        message = _unknown(shown, path, body_type)
    elif code == "missing_required_parameter":
        message = f"Missing required parameter: '{shown}'."
    else:
        what = "key in" if is_key else "value for"
        message = f"Invalid {what} '{shown}': {str(error['msg'])[:MAX_ECHO]}."
    return {"path": shown, "code": code, "message": message}


def _unknown(shown: str, path: Sequence[Any], body_type: Any) -> str:
    nearest = nearest_field(body_type, tuple(path[:-1]), str(path[-1]))
    if nearest == path[-1]:
        return f"'{shown}' is given twice, under two names. Keep one."
    hint = f"Did you mean '{nearest}'?" if nearest else ""
    if path[-2:-1] == ["hyperparameters"]:
        hint = hint_for(str(path[-1])) or hint
    return f"Unknown parameter: '{shown}'. {hint}".rstrip()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer the errors of Starlette itself, such as an unknown route or method."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ServiceError):  # FastAPI wraps errors of reading the body
        return await _service_error(request, error.__cause__)
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.NOT_FOUND:
        return await _service_error(request, _explain_missing_route(request))
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not support {request.method}."[:MAX_ECHO]
        code = "method_not_allowed"
        headers["allow"] = _methods_of_path(request) or headers["allow"]
    else:
        message, code = str(error.detail), status.phrase.lower().replace(" ", "_")
    return error_response(status, message, code=code, headers=headers)


def _methods_of_path(request: Request) -> str:
    """The methods that the path has; none for a mounted application, which names them itself.

    Starlette knows only those of the first route that fits.
    """
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if compile_path(route.path or "")[0].match(request.url.path):
            methods |= set(route.methods or ())
    return ", ".join(sorted(methods))


async def _os_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that means a full disk; re-raise any other error of the system."""
    assert isinstance(error, OSError)
    storage_full = as_storage_full(error)
    if storage_full is None:
        raise error
    return await _service_error(request, storage_full)


def _explain_missing_route(request: Request) -> NotFoundError:
    """The error for a path without a route: what is not offered, or what was probably meant."""
    path = request.url.path
    asked = f"{request.method} {path}"[:MAX_ECHO]
    has_prefix = path == "/v1" or path.startswith("/v1/")
    below = path.removeprefix("/v1") if has_prefix else path
    paths = request.app.openapi()["paths"]
    whole = [each for each in paths if each.startswith("/v1/") and "{" not in each]
    offered = [each for each in whole if not any(each.startswith(f"{one}/") for one in whole)]
    what_there_is = (
        f"This service offers {', '.join(offered)} and the paths below them. See docs/api.md, or "
        "/docs on the service itself."
    )
    if not has_prefix and _is_below(f"/v1{path}", *offered):
        hint = f"Add /v1 to the base URL of your client: the path is /v1{path[:MAX_ECHO]}."
    elif path.endswith("/") and _is_below(path, *offered):
        hint = "Remove the slash at the end of the path."
    elif _NOT_OFFERED.match(f"{below}/"):
        hint = "" if has_prefix else " Add /v1 to the base URL of your client."
        return NotFoundError(
            f"{asked} is part of OpenAI's API and is not offered here. {what_there_is}{hint}",
            code="not_offered",
        )
    else:
        hint = what_there_is
    return NotFoundError(f"No such route: {asked}. {hint}", code="unknown_url")


def _is_below(path: str, *parents: str) -> bool:
    return f"{path}/".startswith(tuple(f"{parent}/" for parent in parents))
