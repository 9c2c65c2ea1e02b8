"""What happens to a job, message by message, as the service streams it.

The stream outlives restarts of the service: it continues behind the last message that arrived. A
service without the stream, or behind a proxy that answers otherwise, is asked every second.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from tunery.client.service.api import Api, AwayError, Json, job_path
from tunery.client.service.server_events import read_events

if TYPE_CHECKING:
    import httpx2

ENDED = ("succeeded", "failed", "cancelled")

_POLL_S = 1.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
_GIVE_UP_S = 600.0
"""Seconds without an answer after which watching ends; a service is restarted in less."""


class Message(NamedTuple):
    kind: str
    """`job`, `event` or `step`, or `end` with the job as the last message."""
    data: Json
    cursor: str = ""
    """Where the stream continues after this message. Empty if the service did not say."""


class _NotStreamedError(Exception):
    """The service has answered with something else than a stream."""


def follow(
    api: Api, job_id: str, *, past_events: int | None, on_break: Callable[[], None]
) -> Iterator[Message]:
    """Yield past events of a job, and then everything that happens to it. The last one is `end`.

    Args:
        api: the service.
        job_id: id of the job.
        past_events: number of past events, the newest; None for all.
        on_break: called when the service is away; the messages continue once it is back.

    Raises:
        RefusedError: the service refuses to show the job.
        AwayError: the service did not answer at first, or not again for a long time.
    """
    source = _Source(api, job_id, past_events)
    heard_s: float | None = None
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            for message in source.messages():
                heard_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
                yield message
                if message.kind == "end":
                    return
        except AwayError:
            if heard_s is None or time.monotonic() - heard_s > _GIVE_UP_S:
                raise
            on_break()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Source:
    """Messages of a job that have not been handed out yet, streamed or asked for."""

    def __init__(self, api: Api, job_id: str, past_events: int | None) -> None:
        self._api = api
        self._job_id = job_id
        self._limit = past_events
        self._is_streamed = True
        self._cursor = ""
        self._seen: set[str] = set()

    def messages(self) -> Iterator[Message]:
        """Yield messages until the connection ends."""
        if self._is_streamed:
            try:
                yield from self._streamed()
            except _NotStreamedError:
                self._is_streamed = False
        if not self._is_streamed:
            yield from self._asked_for()

    def _streamed(self) -> Iterator[Message]:
        headers = {"Accept": "text/event-stream"}
        if self._cursor:
            headers["Last-Event-ID"] = self._cursor
        start = None if self._cursor else "latest"
        path = job_path(self._job_id, "events")
        with self._api.stream(path, headers=headers, stream="true", cursor=start) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise _NotStreamedError
            for message in read_messages(response):
                if not self._cursor:  # the past is read once the stream has begun: no gap
                    yield from self._new_events()
                self._cursor = message.cursor or self._cursor
                if message.kind != "event" or message.data["id"] not in self._seen:
                    yield message

    def _asked_for(self) -> Iterator[Message]:
        while True:
            job = self._api.get(job_path(self._job_id))
            yield from self._new_events()
            has_ended = job["status"] in ENDED
            yield Message("end" if has_ended else "job", job)
            if has_ended:
                return
            time.sleep(_POLL_S)

    def _new_events(self) -> list[Message]:
        """The events that were not handed out yet, oldest first."""
        events: list[Json] = []
        limit = None if self._seen else self._limit
        for event in self._api.pages(job_path(self._job_id, "events"), limit=limit):
            if event["id"] in self._seen:
                break
            events.append(event)
        self._seen.update(event["id"] for event in events)
        return [Message("event", event) for event in reversed(events)]


def read_messages(response: "httpx2.Response") -> Iterator[Message]:
    """Read server-sent events whose data is JSON."""
    for event in read_events(response):
        yield Message(event.name, json.loads(event.data), event.cursor)
