"""Passes a request on if its model has an engine of its own."""

import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx2
from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app.api.access import CALLER
from app.api.deps import Resources
from app.api.errors import service_error_response
from app.api.leaving import CLIENT_CLOSED_REQUEST, ClientLeftError, unless_client_leaves
from app.api.live.answers import EVENT_STREAM
from app.api.metrics import SAMPLED, RequestMetrics
from app.api.requests import StrictJsonRoute
from app.api.sampling.engine_usage import EngineUsage
from app.api.sampling.engines import Engines, media_type_of
from app.api.sampling.slots import SamplingSlots
from app.api.sampling.writer import data
from app.core.access import Caller
from app.core.dataset.rows.fields import is_object
from app.core.db.repositories.checkpoints import no_such_model
from app.core.errors import EngineUnavailableError
from app.core.sampling.engines import Engine
from app.schemas.sampling.chat import ChatCompletionCreate
from app.schemas.sampling.completions import CompletionCreate
from app.schemas.sampling.responses import ResponseCreate
from app.services.adapters.lookup import TUNED_PREFIX, get_adapter_of
from app.services.sampling.prompts import plan_chat, plan_completion, plan_response

_PREFIX = "/v1/"
_HEADERS_KEPT = ("retry-after", "retry-after-ms")

_CHECKS: Mapping[str, Callable[[Any], object]] = {
    "chat/completions": lambda body: plan_chat(ChatCompletionCreate.model_validate(body)),
    "completions": lambda body: plan_completion(CompletionCreate.model_validate(body)),
    "responses": lambda body: plan_response(ResponseCreate.model_validate(body)),
}
"""What refuses a request as for the sampler, by its path below `/v1/`."""

logger = logging.getLogger(__name__)


class _PassingRoute(APIRoute):
    """A route that passes the requests for an engine on, and leaves the others to its function."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            engines: Engines = request.app.state.engines
            body: Any = await request.json() if engines else None
            engine = engines.find(body.get("model")) if is_object(body) else None
            return await (handler(request) if engine is None else _pass_on(request, engine, body))

        return handle


class EngineRoute(StrictJsonRoute, _PassingRoute):
    """A route whose requests may be answered by an engine of TUNERY_SAMPLING_ENGINES."""


async def _pass_on(request: Request, engine: Engine, body: dict[str, Any]) -> Response:
    """Let the engine answer what the sampler could have been asked.

    Engines have parameters of their own, with which a request could reach an adapter of another
    project, or an address that only the engine can reach. None of them is passed on.

    Raises:
        RequestValidationError: the body is none of the route.
        ServiceError: as `Engines.post` and `SamplingSlots.taken`; or a part of the body is not
            supported, or the project has no such model.
    """
    caller: Caller = request.scope["state"][CALLER]
    engines: Engines = request.app.state.engines
    slots: SamplingSlots = request.app.state.sampling_slots
    path = request.url.path.removeprefix(_PREFIX)
    await to_thread.run_sync(_check, path, body)
    await _require_model(request.app.state.resources, caller, engine, body["model"])
    changes: dict[str, Any] = {"model": engine.name or body["model"]}
    if engine.cache_salt:
        changes["cache_salt"] = caller.project_id
    content = json.dumps(body | changes).encode()
    async with AsyncExitStack() as opened:
        opened.enter_context(slots.taken(caller.project_id))
        usage = EngineUsage(is_stream=bool(body.get("stream")))
        try:
            sent = engines.post(engine, path, content)
            answer = await unless_client_leaves(request, sent)
        except ClientLeftError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        opened.push_async_callback(answer.aclose)
        return _PassedOn(answer, usage, request.app.state.metrics, opened.pop_all())


def _check(path: str, body: dict[str, Any]) -> None:
    try:
        _CHECKS[path](body)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from error


async def _require_model(resources: Resources, caller: Caller, engine: Engine, name: str) -> None:
    """Refuse the name of a model that is not the project's.

    A name that the operator has written in full is that of a model for everyone. A pattern also
    fits names that only the engine knows, such as those of adapters that it was started with.
    """
    if name.startswith(TUNED_PREFIX):
        await to_thread.run_sync(resources.read, partial(get_adapter_of, caller=caller, name=name))
    elif engine.is_pattern and resources.catalogue.find(name) is None:
        raise no_such_model(name)


class _PassedOn(StreamingResponse):
    """The answer of an engine, whose connection is closed as soon as the client has left."""

    def __init__(
        self,
        answer: httpx2.Response,
        usage: EngineUsage,
        metrics: RequestMetrics,
        opened: AsyncExitStack,
    ) -> None:
        headers = {
            name: answer.headers[name] for name in _HEADERS_KEPT if name in answer.headers
        } | {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(
            _read(answer, usage), answer.status_code, headers, media_type=media_type_of(answer)
        )
        self._usage = usage
        self._metrics = metrics
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            await super().__call__(scope, receive, send)
        sampled = self._usage.sampled()
        if sampled is not None:
            scope["state"][SAMPLED] = sampled
            self._metrics.observe_sampled(sampled)


async def _read(answer: httpx2.Response, usage: EngineUsage) -> AsyncGenerator[bytes]:
    """What an engine sends, as it comes. If it fails, a stream ends with an error."""
    try:
        async for chunk in answer.aiter_raw():
            usage.take(chunk)
            yield chunk
    except httpx2.HTTPError as error:
        logger.warning("an engine has stopped in the middle of an answer: %r", error)
        if media_type_of(answer) != EVENT_STREAM:
            raise
        lost = EngineUnavailableError("The engine has stopped before the answer was complete.")
        yield data(bytes(service_error_response(lost).body))
