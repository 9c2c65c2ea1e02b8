"""Requests for completions over real connections: they leave, they fail, and they are bounded."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.sampling.slots import SamplingSlots
from app.core.db.session import Database
from app.core.sampling.messages import Accepted, Delta
from tests.asgi import scope_of_post
from tests.standin_sampler import PATIENCE_S, Asked, Said, StandInSampler, wait_for_leaving
from tests.streams import serving
from tests.waiting import median_s, wait_until

pytestmark = pytest.mark.only_sqlite

FREED_WITHIN_S = 0.2


@pytest.fixture
def served(app: FastAPI) -> Iterator[httpx.Client]:
    with serving(app) as client:
        yield client


def url(client: httpx.Client, path: str = "chat/completions") -> httpx.URL:
    return client.base_url.copy_with(path=f"/v1/{path}")


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} | changes


def metric(app: FastAPI, name: str, **labels: str) -> float:
    return app.state.metrics.registry.get_sample_value(name, labels) or 0.0


def wait_for_request(sampler: StandInSampler, known: int) -> Asked:
    """The request that comes after those that are known."""
    wait_until(lambda: len(sampler.asked) > known, within_s=PATIENCE_S)
    return sampler.asked[known]


def time_until_left(asked: Asked) -> float:
    """How long it takes from now until the sampler hears that the client has left, in seconds."""
    began_s = time.monotonic()
    assert asked.has_left.wait(PATIENCE_S)
    return time.monotonic() - began_s


def test_a_client_that_leaves_a_stream_frees_its_slot_at_once(
    served: httpx.Client, sampler: StandInSampler, app: FastAPI
) -> None:
    sampler.script = wait_for_leaving

    def leave() -> float:
        known = len(sampler.asked)
        with served.stream("POST", url(served), json=body(stream=True)) as answer:
            lines = answer.iter_lines()
            assert "assistant" in next(lines)
            asked = wait_for_request(sampler, known)
        return time_until_left(asked)

    assert median_s(leave) < FREED_WITHIN_S
    wait_until(lambda: metric(app, "tunery_sampling_open") == 0, within_s=PATIENCE_S)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_before_an_answer_frees_its_slot_at_once(
    served: httpx.Client, sampler: StandInSampler, *, is_streamed: bool
) -> None:
    def say_nothing(asked: Asked) -> Iterator[Said]:
        asked.has_left.wait(PATIENCE_S)
        yield from ()

    sampler.script = say_nothing
    sent = json.dumps(body(stream=is_streamed))

    def leave() -> float:
        known = len(sampler.asked)
        with closing(HTTPConnection(served.base_url.host, served.base_url.port)) as connection:
            connection.request("POST", url(served).path, sent, {"Content-Type": "application/json"})
            asked = wait_for_request(sampler, known)
        return time_until_left(asked)

    assert median_s(leave) < FREED_WITHIN_S


def test_a_client_that_leaves_before_the_first_event_frees_its_slot(
    app: FastAPI, sampler: StandInSampler, database: Database
) -> None:
    request = {"type": "http.request", "body": json.dumps(body(stream=True)).encode()}
    received = iter([request, None, {"type": "http.disconnect"}])

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    async def leave_when_the_stream_begins() -> float:
        async def receive() -> Any:
            return next(received) or await wait_for_ever()

        async def send(_: Any) -> None:
            await wait_for_ever()  # as to a client that reads nothing

        headers = {"content-type": "application/json", "host": "127.0.0.1"}
        await app(scope_of_post("/v1/chat/completions", headers), receive, send)
        return metric(app, "tunery_sampling_open")

    assert asyncio.run(leave_when_the_stream_begins()) == 0
    assert sampler.asked[0].has_left.wait(PATIENCE_S)
    assert database is not None


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_a_sampler_that_dies_in_the_middle_ends_the_stream_with_an_error(
    served: httpx.Client, sampler: StandInSampler, path: str
) -> None:
    def die(_: Asked) -> Iterator[Said]:
        yield Accepted(prompt_tokens=1, cached_tokens=0)
        yield Delta(choice=0, text="Well ")
        sampler.die()

    sampler.script = die
    asked = {"model": "tiny", "stream": True, "prompt": "Hi"}
    if path != "completions":
        asked.pop("prompt")
        asked |= {"input": "Hi"} if path == "responses" else {"messages": body()["messages"]}
    answer = served.post(url(served, path), json=asked)

    data = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    last = json.loads(data[-1].removeprefix("data: "))
    error = last if path == "responses" else last["error"]
    assert answer.status_code == 200
    assert "Well " in data[-2]
    assert (error["code"], error["param"]) == ("sampler_unavailable", None)
    assert error["message"].startswith("The sampler has stopped before the answer was complete.")
    assert error["type"] == ("error" if path == "responses" else "server_error")


def test_tokens_come_as_they_are_made(served: httpx.Client, sampler: StandInSampler) -> None:
    seen: list[str] = []

    def wait_for_reader(_: Asked) -> Iterator[Said]:
        yield Accepted(prompt_tokens=1, cached_tokens=0)
        for word in ("one ", "two "):
            yield Delta(choice=0, text=word)
            wait_until(lambda word=word: word in seen, within_s=PATIENCE_S)

    sampler.script = wait_for_reader
    with served.stream("POST", url(served), json=body(stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        pieces = (json.loads(line[6:]) for line in answer.iter_lines() if "delta" in line)
        for piece in pieces:
            seen.append(piece["choices"][0]["delta"]["content"])  # noqa: PERF401 - one by one

    assert seen == ["", "one ", "two "]


def test_open_requests_are_bounded(
    served: httpx.Client, sampler: StandInSampler, app: FastAPI
) -> None:
    app.state.sampling_slots = SamplingSlots(app.state.metrics, max_connections=8)
    sampler.script = wait_for_leaving
    with served.stream("POST", url(served), json=body(stream=True)) as first:
        lines = first.iter_lines()  # which ends the answer once it is forgotten
        next(lines)
        refused = served.post(url(served), json=body())

    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "5"


def test_what_was_sampled_is_counted_and_logged(
    served: httpx.Client,
    sampler: StandInSampler,
    app: FastAPI,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="app.access"):
        served.post(url(served), json=body(messages=[{"role": "user", "content": "a b c d"}]))

    wait_until(lambda: len(caplog.records) > 0, within_s=PATIENCE_S)
    counted = {
        kind: metric(app, "tunery_sampling_tokens_total", kind=kind)
        for kind in ("prompt", "cached", "completion")
    }
    assert counted == {"prompt": 4, "cached": 2, "completion": 4}
    assert metric(app, "tunery_sampling_first_token_seconds_count") == 1
    (record,) = caplog.records
    logged = vars(record)
    assert (logged["prompt_tokens"], logged["completion_tokens"]) == ("4", "4")
    assert sampler.asked


def test_what_was_sampled_for_a_client_that_left_is_counted(
    served: httpx.Client, sampler: StandInSampler, app: FastAPI
) -> None:
    sampler.script = wait_for_leaving
    with served.stream("POST", url(served), json=body(stream=True)) as answer:
        lines = answer.iter_lines()
        while "Well " not in next(lines):
            pass

    def counted(kind: str) -> float:
        return metric(app, "tunery_sampling_tokens_total", kind=kind)

    wait_until(lambda: counted("prompt") == 1, within_s=PATIENCE_S)
    assert counted("completion") == 1
