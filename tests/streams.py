"""An API that serves in a thread of this process, and a client of its streams."""

import json
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import uvicorn
from fastapi import FastAPI

from app.api.http_protocol import bounded_protocol
from app.api.metrics import RequestMetrics
from tests.waiting import wait_until

PATIENCE_S = 20.0
STREAM_S = 90.0


class Message(NamedTuple):
    kind: str
    id: str
    data: Any


def parse_messages(lines: Iterable[str]) -> Iterator[Message]:
    """The messages of a stream, by the rules of server-sent events."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, text = line.partition(": ")
        if name:
            fields[name] = text
        elif line or "data" not in fields:
            fields.pop("retry", None)
        else:
            yield Message(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            fields = {}


@contextmanager
def serving(app: FastAPI) -> Generator[httpx.Client]:
    """A client of the application, which has its connections as in production."""
    with serving_until(app) as (client, _):
        yield client


@contextmanager
def serving_until(app: FastAPI) -> Generator[tuple[httpx.Client, uvicorn.Server]]:
    """Like `serving`, with the server, so that it can be told to stop earlier."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_config=None,
        access_log=False,
        http=bounded_protocol(app.state.resources.settings, RequestMetrics()),
        ws="none",
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), within_s=PATIENCE_S)
        port = server.servers[0].sockets[0].getsockname()[1]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        url = f"http://127.0.0.1:{port}/v1/fine_tuning"
        with httpx.Client(base_url=url, timeout=PATIENCE_S, limits=limits) as client:
            yield client, server
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextmanager
def streaming(client: httpx.Client, path: str, **options: Any) -> Generator[Iterator[Message]]:
    """The messages of a stream. They end when the server ends the answer."""
    with client.stream("GET", path, **options) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parse_messages(_in_time(answer.iter_lines()))


def _in_time(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a stream that should have ended by then: its comments would come for ever."""
    deadline_s = time.monotonic() + STREAM_S
    for line in lines:
        assert time.monotonic() < deadline_s, "the stream does not end"
        yield line


def read_to_end(client: httpx.Client, path: str, **options: Any) -> list[Message]:
    with streaming(client, path, **options) as messages:
        return list(messages)
