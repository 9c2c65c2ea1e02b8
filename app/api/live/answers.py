"""Answers to requests that follow a job or a project, as a stream or by waiting once."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.access import CALLER, RECHECK
from app.api.deps import Resources
from app.api.leaving import (
    CLIENT_CLOSED_REQUEST,
    ClientLeftError,
    end_with_service,
    unless_client_leaves,
)
from app.api.live.feed import FollowedProject, stream_project
from app.api.live.hub import Hub
from app.api.live.jobs import FollowedJob, JobState, stream_job
from app.api.live.messages import LATEST, Cursor, parse_cursor
from app.api.live.topic import Reader
from app.api.metrics import WAITED_S
from app.api.polls.entity_tags import entity_tag, lists_tag
from app.core.access import Caller
from app.core.clock import steady_s
from app.core.db.repositories.events import no_such_job
from app.core.errors import ServiceError

EVENT_STREAM = "text/event-stream"

MAX_CURSOR = 100
"""Maximum number of characters of a cursor in a request."""

MAX_WAIT_S = 60

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {EVENT_STREAM: {}}}}
"""What the description of a route says that can stream."""

logger = logging.getLogger(__name__)


async def _hub(request: Request) -> Hub:
    return request.app.state.hub


HubDep = Annotated[Hub, Depends(_hub)]


class _EventStream(StreamingResponse):
    """Server-sent events for a reader, which leaves the hub at the end."""

    def __init__(self, messages: AsyncGenerator[bytes], hub: Hub, reader: Reader[Any]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(_until_error(messages), media_type=EVENT_STREAM, headers=headers)
        self._hub = hub
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = steady_s()
        end_with_service(scope["state"], self._reader.end)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._hub.leave(self._reader)
            scope["state"][WAITED_S] = steady_s() - began_s


async def _until_error(messages: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The messages until the database fails. The client connects again and goes on from there."""
    try:
        async for message in messages:
            yield message
    except ServiceError as error:
        logger.warning("a stream ended early: %s", error)


async def follow_job(
    request: Request, resources: Resources, hub: Hub, job_id: str, cursor: str | None
) -> Response:
    """Stream a job from the cursor in the header `Last-Event-ID`, or from `cursor`.

    Raises:
        ServiceError: as `Hub.join`, or the cursor is invalid.
    """
    last_id = request.headers.get("last-event-id")
    text, param = (last_id, "Last-Event-ID") if last_id else (cursor or "", "cursor")
    after = None if text == LATEST else parse_cursor(text, param=param) if text else Cursor()
    job, reader = await _join_job(request, resources, hub, job_id)
    return _EventStream(stream_job(hub, job, reader, after), hub, reader)


async def follow_project(request: Request, resources: Resources, hub: Hub) -> Response:
    """Stream the changed jobs of the caller's project.

    Raises:
        ServiceError: as `Hub.join`.
    """
    state = request.scope["state"]
    caller: Caller = state[CALLER]
    reader = await hub.join(
        caller.project_id,
        FollowedProject(resources, caller.project_id).look,
        project_id=caller.project_id,
        recheck=state[RECHECK],
    )
    return _EventStream(stream_project(reader), hub, reader)


async def wait_for_job(
    request: Request, resources: Resources, hub: Hub, job_id: str, *, seconds: int
) -> Response:
    """Answer with a job as soon as it is no longer as the client knows it, or after some seconds.

    The client knows it as the header `If-None-Match` says, or else as it is now.

    Raises:
        ServiceError: as `Hub.join`.
    """
    _, reader = await _join_job(request, resources, hub, job_id)
    state = request.scope["state"]
    began_s = steady_s()
    try:
        end_with_service(state, reader.end)
        await hub.refresh(reader.topic)
        tag = request.headers.get("if-none-match") or _tag_of(reader)
        began_s = steady_s()
        await unless_client_leaves(request, _wait_for_change(reader, tag, seconds))
    except ClientLeftError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        hub.leave(reader)
        state[WAITED_S] = steady_s() - began_s
    if reader.refusal is not None:
        raise reader.refusal
    if reader.topic.state.is_deleted:
        raise no_such_job(job_id)
    return Response(reader.topic.state.body, media_type="application/json")


async def _wait_for_change(reader: Reader[JobState], tag: str, seconds: int) -> None:
    topic = reader.topic
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not (reader.is_over or topic.state.is_deleted):
                if not lists_tag(tag, _tag_of(reader)):
                    return
                await topic.wait_for_news()


def _tag_of(reader: Reader[JobState]) -> str:
    return entity_tag(reader.topic.state.body.encode())


async def _join_job(
    request: Request, resources: Resources, hub: Hub, job_id: str
) -> tuple[FollowedJob, Reader[JobState]]:
    state = request.scope["state"]
    caller: Caller = state[CALLER]
    job = FollowedJob(resources, caller.project_id, job_id)
    reader = await hub.join(
        (caller.project_id, job_id),
        job.look,
        project_id=caller.project_id,
        recheck=state[RECHECK],
    )
    return job, reader
