"""Answers a request for completions with what the sampler says, whole or as a stream."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from app.api.blob_reading import open_for_process
from app.api.deps import CallerDep, ResourcesDep, as_json
from app.api.leaving import CLIENT_CLOSED_REQUEST, ClientLeftError, unless_client_leaves
from app.api.live.answers import EVENT_STREAM
from app.api.metrics import SAMPLED, RequestMetrics, Sampled
from app.api.sampling.slots import SamplingSlots
from app.api.sampling.writer import Writer
from app.core.db.repositories.checkpoints import no_such_model
from app.core.errors import InvalidRequestError, NotFoundError, ServiceError
from app.core.sampling.channel import Channel, Progress
from app.services.sampling.models import SamplingModel, find_sampling_model
from app.services.sampling.prompts import Plan


class Answering:
    """Answers one request. If its client leaves, the sampler is told so at once."""

    def __init__(self, request: Request, caller: CallerDep, resources: ResourcesDep) -> None:
        self._request = request
        self._project_id = caller.project_id
        self._resources = resources
        self._find = partial(find_sampling_model, caller=caller, catalogue=resources.catalogue)
        self._slots: SamplingSlots = request.app.state.sampling_slots
        self._metrics: RequestMetrics = request.app.state.metrics

    async def find_model(self, name: str) -> SamplingModel:
        """Find the model that answers.

        Raises:
            ServiceError: as `find_sampling_model`.
        """
        find = partial(self._find, name=name)
        return await to_thread.run_sync(self._resources.read, find)

    async def answer(
        self, plan: Plan, model: SamplingModel, writer: Writer, *, is_streamed: bool | None
    ) -> Response:
        """Answer the request.

        Raises:
            ServiceError: as `SamplingSlots.taken`, `Channel.open` and `Channel.answers`, all
                before a stream begins; or the model has been deleted.
        """
        sampling = self._sample(plan, model)
        async with AsyncExitStack() as opened:
            answers = await opened.enter_async_context(aclosing(sampling))
            try:
                if not is_streamed:
                    whole = await unless_client_leaves(self._request, _collect(answers, writer))
                    return as_json(whole)
                first = await unless_client_leaves(self._request, _next(answers))
            except ClientLeftError:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            return _Stream(_write(first, answers, writer), opened.pop_all())

    async def _sample(self, plan: Plan, model: SamplingModel) -> AsyncGenerator[Progress]:
        """Ask the sampler, and yield its answers. Closing this cancels the request."""
        sampled = self._request.scope["state"][SAMPLED] = Sampled()
        try:
            with (
                self._slots.taken(self._project_id),
                closing(await self._open_channel(plan, model)) as channel,
            ):
                async for each in channel.answers():
                    sampled.take(each)
                    yield each
        except InvalidRequestError as error:
            raise plan.rename(error) from None
        finally:
            self._metrics.observe_sampled(sampled)

    async def _open_channel(self, plan: Plan, model: SamplingModel) -> Channel:
        settings, models = self._resources.settings, self._resources.models
        find = partial(models.find, model.base, needs_weights=True)
        directory = await to_thread.run_sync(find)
        blobs = model.adapter.blobs if model.adapter else ()
        with ExitStack() as opened:
            try:
                files = [
                    opened.enter_context(
                        await to_thread.run_sync(open_for_process, self._resources, blob)
                    )
                    for blob in blobs
                ]
            except NotFoundError as error:  # it has just been deleted
                raise no_such_model(model.name) from error
            ask = plan.ask(model, directory, self._project_id)
            return await Channel.open(settings.sampler_dir, ask, files)


async def _answering(request: Request, caller: CallerDep, resources: ResourcesDep) -> Answering:
    if resources.settings.sampling == "off":
        raise InvalidRequestError(
            "Models cannot be asked here, because TUNERY_SAMPLING is off. Ask the operator of this "
            "service to set it to idle or shared, and to start the service again.",
            code="sampling_off",
            param="model",
        )
    return Answering(request, caller, resources)


AnsweringDep = Annotated[Answering, Depends(_answering)]


class _Stream(StreamingResponse):
    """Server-sent events, whose source is closed as soon as the client has left.

    Args:
        messages: the events.
        opened: what is closed then, also if the client leaves before the first event is asked for.
    """

    def __init__(self, messages: AsyncGenerator[bytes], opened: AsyncExitStack) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(messages, media_type=EVENT_STREAM, headers=headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            await super().__call__(scope, receive, send)


async def _next(answers: AsyncGenerator[Progress]) -> Progress:
    return await anext(answers)


async def _collect(answers: AsyncGenerator[Progress], writer: Writer) -> BaseModel:
    async for each in answers:
        writer.take(each)
    return writer.whole()


async def _write(
    first: Progress, answers: AsyncGenerator[Progress], writer: Writer
) -> AsyncGenerator[bytes]:
    """The messages of a stream. An error that comes this late is the last of them."""
    try:
        yield b"".join(writer.write(first))
        async for each in answers:
            yield b"".join(writer.write(each))
    except ServiceError as error:
        yield writer.failure(error)
    else:
        yield b"".join(writer.ending())
