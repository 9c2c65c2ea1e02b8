"""Passes a request on if its model has an engine of its own, as it is and without a schema."""

import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx2
from anyio import to_thread
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.api.access import CALLER
from app.api.deps import Resources
from app.api.errors import service_error_response
from app.api.leaving import CLIENT_CLOSED_REQUEST, ClientLeftError, unless_client_leaves
from app.api.live.answers import EVENT_STREAM
from app.api.requests import StrictJsonRoute
from app.api.sampling.engines import Engines, media_type_of
from app.api.sampling.slots import SamplingSlots
from app.api.sampling.writer import data
from app.core.access import Caller
from app.core.dataset.rows.fields import is_object
from app.core.errors import EngineUnavailableError
from app.core.sampling.engines import Engine
from app.services.adapters.lookup import TUNED_PREFIX, get_adapter_of

_PREFIX = "/v1/"
_HEADERS_KEPT = ("retry-after", "retry-after-ms")

logger = logging.getLogger(__name__)


class _PassingRoute(APIRoute):
    """A route that passes requests on before their bodies are validated."""

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
    """Let the engine answer.

    Raises:
        ServiceError: as `Engines.post` and `SamplingSlots.taken`; or the project has no such model.
    """
    caller: Caller = request.scope["state"][CALLER]
    resources: Resources = request.app.state.resources
    slots: SamplingSlots = request.app.state.sampling_slots
    engines: Engines = request.app.state.engines
    if body["model"].startswith(TUNED_PREFIX):
        find = partial(get_adapter_of, caller=caller, name=body["model"])
        await to_thread.run_sync(resources.read, find)
    if engine.name is None:
        content = await request.body()
    else:
        content = json.dumps(body | {"model": engine.name}).encode()
    path = request.url.path.removeprefix(_PREFIX)
    async with AsyncExitStack() as opened:
        opened.enter_context(slots.taken(caller.project_id))
        try:
            sent = engines.post(engine, path, content)
            answer = await unless_client_leaves(request, sent)
        except ClientLeftError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        opened.push_async_callback(answer.aclose)
        return _PassedOn(answer, opened.pop_all())


class _PassedOn(StreamingResponse):
    """The answer of an engine, whose connection is closed as soon as the client has left."""

    def __init__(self, answer: httpx2.Response, opened: AsyncExitStack) -> None:
        headers = {
            name: answer.headers[name] for name in _HEADERS_KEPT if name in answer.headers
        } | {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(
            _read(answer), answer.status_code, headers, media_type=media_type_of(answer)
        )
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            await super().__call__(scope, receive, send)


async def _read(answer: httpx2.Response) -> AsyncGenerator[bytes]:
    """What an engine sends, as it comes. If it fails, a stream ends with an error."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx2.HTTPError as error:
        logger.warning("an engine has stopped in the middle of an answer: %r", error)
        if media_type_of(answer) != EVENT_STREAM:
            raise
        lost = EngineUnavailableError("The engine has stopped before the answer was complete.")
        yield data(bytes(service_error_response(lost).body))
