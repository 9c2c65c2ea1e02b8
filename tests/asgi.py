"""Requests handed straight to an ASGI application, for what no client lets a test see."""

import asyncio
import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import openai
from fastapi import FastAPI
from starlette.testclient import TestClient


def stock_client(client: TestClient, *, is_strict: bool) -> openai.OpenAI:
    """OpenAI's own client, which talks to the application in this process.

    Args:
        is_strict: whether it refuses every answer that is not as OpenAI documents it.
    """
    return openai.OpenAI(
        base_url="http://127.0.0.1/v1",
        api_key="unused",
        http_client=client,
        max_retries=0,
        _strict_response_validation=is_strict,
    )


def fill_disk(app: FastAPI) -> None:
    """From now on, the application must leave more bytes free than any disk has."""
    resources = app.state.resources
    settings = resources.settings.model_copy(update={"min_free_bytes": 2**62})
    app.state.resources = replace(resources, settings=settings)


@contextmanager
def full_disk(app: FastAPI) -> Generator[None]:
    """`fill_disk` until the block ends."""
    before = app.state.resources
    fill_disk(app)
    yield
    app.state.resources = before


def scope_of_post(path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """What a server hands to the application for a POST."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


class Answer(NamedTuple):
    status: int
    body: Any
    bytes_taken: int
    """How much of the request's body the application has read."""


def post_in_chunks(
    app: FastAPI,
    path: str,
    chunks: Iterable[bytes],
    content_type: str,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a body of unknown length, whose chunks are made only as they are asked for."""
    remaining = iter(chunks)
    taken = 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        chunk = next(remaining, None)
        taken += len(chunk or b"")
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = scope_of_post(path, {"content-type": content_type, **(headers or {})})
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], json.loads(body), taken)
