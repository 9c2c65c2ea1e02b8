"""Requests for the models of an operator's engine are passed on to it, and to no other place."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.sampling.engines import parse_engines
from app.core.settings import Settings
from app.main import create_app
from tests.builders import add_key, bearer
from tests.standin_sampler import PATIENCE_S, StandInSampler
from tests.streams import serving
from tests.waiting import wait_until

pytestmark = pytest.mark.only_sqlite

SECRET = "the key of the engine"  # noqa: S105 - of no service
KNOWN = "smollm2-135m-instruct"
"""A model of the catalogue, which need not be installed."""
MESSAGES = [{"role": "user", "content": "Hi"}]
STREAMED = {"model": "big", "messages": MESSAGES, "stream": True}
USAGE_OF_RESPONSE = {
    "input_tokens": 7,
    "output_tokens": 3,
    "input_tokens_details": {"cached_tokens": 5},
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
ANSWER = {"model": "as the engine says", "choices": [{"text": '"usage": {'}], "usage": USAGE}


def send_answer(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(json.dumps(ANSWER).encode())


class StandInEngine:
    """An OpenAI-compatible server whose answers a test decides."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.status, self.media_type = 200, "application/json"
        self.encoding = "identity"
        self.has_left = threading.Event()
        self.send: Callable[[BaseHTTPRequestHandler], None] = send_answer
        self.url = ""


@contextmanager
def running(engine: StandInEngine) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): text for name, text in self.headers.items()}
            engine.asked.append((self.path, headers, json.loads(content)))
            self.send_response(engine.status)
            self.send_header("content-type", engine.media_type)
            self.send_header("content-encoding", engine.encoding)
            self.end_headers()
            engine.send(self)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    engine.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def engine() -> Iterator[StandInEngine]:
    engine = StandInEngine()
    with running(engine):
        yield engine


@pytest.fixture
def settings(settings: Settings, engine: StandInEngine) -> Settings:
    engines = [
        {"models": "ft:*", "url": f"{engine.url}/", "key": SECRET},
        {"models": "big", "url": engine.url, "name": "org/big-model", "cache_salt": False},
        {"models": "*-*", "url": engine.url},
    ]
    return settings.model_copy(update={"sampling_engines": SecretStr(json.dumps(engines))})


def ask(client: TestClient, model: str | None, **options: Any) -> Any:
    asked = {"model": model, "messages": MESSAGES, "temperature": 0.5}
    return client.post("/v1/chat/completions", json=asked, **options)


def test_a_request_is_passed_on_with_its_project(
    client: TestClient, engine: StandInEngine, tuned: Job
) -> None:
    answer = ask(client, tuned.fine_tuned_model, headers=bearer("a key of this service"))

    assert (answer.status_code, answer.json()) == (200, ANSWER)
    path, headers, body = engine.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": tuned.fine_tuned_model,
        "messages": MESSAGES,
        "temperature": 0.5,
        "cache_salt": tuned.project_id,
    }
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert "cookie" not in headers


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "Once"}),
        ("/v1/responses", {"input": "Hi"}),
    ],
)
def test_the_engine_gets_the_name_that_it_knows(
    client: TestClient, engine: StandInEngine, path: str, asked: dict[str, Any]
) -> None:
    client.post(path, json={"model": "big", **asked})

    asked_path, headers, body = engine.asked[0]
    assert (asked_path, body) == (path, {"model": "org/big-model", **asked})
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("/v1/chat/completions", {"lora": [{"id": 1, "scale": 1}]}, "lora"),
        ("/v1/chat/completions", {"cache_salt": "of another project"}, "cache_salt"),
        ("/v1/completions", {"id_slot": 0}, "id_slot"),
        ("/v1/completions", {"prompt": ["one", "two"]}, "prompt"),
        ("/v1/responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"store": True}, "store"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_what_only_an_engine_knows_is_refused(
    client: TestClient, engine: StandInEngine, path: str, asked: dict[str, Any], param: str
) -> None:
    content = {"messages": MESSAGES} if "chat" in path else {"prompt": "Once"}
    content = {"input": "Hi"} if "responses" in path else content

    answer = client.post(path, json={"model": "big", **content, **asked})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)
    assert engine.asked == []


@pytest.mark.parametrize(("model", "status"), [(KNOWN, 200), ("my-lora", 404), ("*-*", 404)])
def test_a_pattern_stands_for_models_of_the_service_alone(
    client: TestClient, engine: StandInEngine, model: str, status: int
) -> None:
    answer = ask(client, model)

    assert answer.status_code == status
    assert len(engine.asked) == (status == 200)


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_tokens_of_an_engine_are_counted(
    app: FastAPI,
    client: TestClient,
    engine: StandInEngine,
    caplog: pytest.LogCaptureFixture,
    *,
    is_stream: bool,
) -> None:
    def send(handler: BaseHTTPRequestHandler) -> None:
        told = {"type": "response.completed", "response": {"usage": {**USAGE_OF_RESPONSE}}}
        handler.wfile.write(b'data: {"text": "%b"}\n\n' % (b"x" * 100_000))
        handler.wfile.write(b"data: %b\n\n" % json.dumps(told).encode())

    if is_stream:
        engine.media_type, engine.send = "text/event-stream", send
    with caplog.at_level("INFO", "app.access"):
        client.post("/v1/responses", json={"model": "big", "input": "Hi", "stream": is_stream})

    count = app.state.metrics.registry.get_sample_value
    kinds = ("prompt", "cached", "completion")
    counted = [count("tunery_sampling_tokens_total", {"kind": kind}) for kind in kinds]
    assert counted == [7, 5, 3]
    assert vars(caplog.records[-1])["completion_tokens"] == "3"
    assert count("tunery_sampling_first_token_seconds_count") == is_stream


@pytest.mark.parametrize("usage", [None, "many", {"prompt_tokens": -1}, {"prompt_tokens": 1}])
def test_an_engine_that_counts_no_tokens(
    app: FastAPI, client: TestClient, engine: StandInEngine, usage: object
) -> None:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(json.dumps({"usage": usage}).encode())

    engine.send = send

    assert ask(client, "big").status_code == 200
    count = app.state.metrics.registry.get_sample_value
    assert count("tunery_sampling_tokens_total", {"kind": "prompt"}) == 0


def test_other_models_are_not_passed_on(
    client: TestClient, engine: StandInEngine, sampler: StandInSampler
) -> None:
    assert ask(client, "tiny").status_code == 200
    assert client.post("/v1/chat/completions", json=["big"]).status_code == 400
    assert client.post("/v1/chat/completions", json={"model": 7}).status_code == 400

    assert engine.asked == []
    assert len(sampler.asked) == 1


def test_no_project_is_passed_on_to_the_model_of_another(
    client: TestClient, engine: StandInEngine, database: Database, tuned: Job
) -> None:
    own, other = add_key(database), add_key(database, "Other")

    answer = ask(client, tuned.fine_tuned_model, headers=bearer(other))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(client, "big").status_code == 401
    assert engine.asked == []
    assert ask(client, tuned.fine_tuned_model, headers=bearer(own)).status_code == 200


def test_an_error_of_the_engine_is_passed_on(client: TestClient, engine: StandInEngine) -> None:
    engine.status = 400

    answer = ask(client, "big")

    assert (answer.status_code, answer.json()) == (400, ANSWER)


@pytest.mark.parametrize(("status", "media_type"), [(401, None), (403, None), (200, "text/html")])
def test_an_engine_that_is_set_up_wrongly_is_told_to_the_operator_alone(
    client: TestClient,
    engine: StandInEngine,
    caplog: pytest.LogCaptureFixture,
    status: int,
    media_type: str | None,
) -> None:
    engine.status, engine.media_type = status, media_type or engine.media_type

    answer = ask(client, "big")

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")
    assert "engine for big" in caplog.text


def test_an_answer_that_is_compressed_is_not_passed_on(
    client: TestClient, engine: StandInEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.encoding = "gzip"

    assert ask(client, "big").json()["error"]["code"] == "engine_failed"
    assert "compressed" in caplog.text


def test_an_engine_that_is_away(settings: Settings, database: Database) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        engines = json.dumps([{"models": "big", "url": url, "key": SECRET}])
        app = create_app(settings.model_copy(update={"sampling_engines": SecretStr(engines)}))
        with TestClient(app, base_url="http://127.0.0.1") as client:
            answer = ask(client, "big")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    assert url not in answer.text
    assert database is not None


def test_a_stream_is_passed_on_as_it_comes(app: FastAPI, engine: StandInEngine) -> None:
    got_first = threading.Event()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"data: 1\n\n")
        assert got_first.wait(PATIENCE_S)
        handler.wfile.write(b"data: [DONE]\n\n")

    engine.media_type, engine.send = "text/event-stream; charset=utf-8", send
    with serving(app) as client:
        url = client.base_url.copy_with(path="/v1/chat/completions")
        with client.stream("POST", url, json=STREAMED) as answer:
            lines: list[str] = []
            for line in answer.iter_lines():
                lines.append(line)
                got_first.set()

    assert [line for line in lines if line] == ["data: 1", "data: [DONE]"]
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_a_client_that_leaves_ends_the_request_to_the_engine(
    app: FastAPI, engine: StandInEngine
) -> None:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"data: 1\n\n")
        handler.connection.recv(1)
        engine.has_left.set()

    engine.media_type, engine.send = "text/event-stream", send
    with serving(app) as client:
        url = client.base_url.copy_with(path="/v1/chat/completions")
        with client.stream("POST", url, json=STREAMED) as answer:
            next(answer.iter_lines())

        assert engine.has_left.wait(PATIENCE_S)
        slots = app.state.metrics.registry
        wait_until(lambda: slots.get_sample_value("tunery_sampling_open") == 0, within_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ft:*=http://a/v1", "Invalid JSON"),
        ('{"models": "a"}', "valid"),
        ('[{"models": "a"}]', "0.url: Field required"),
        ('[{"models": "a", "url": "http://user:SECRET@a/v1"}]', "give a base URL"),
        ('[{"models": "a", "url": "file:///etc/passwd"}]', "give a base URL"),
        ('[{"models": "a", "url": "http://a/v1", "keys": "SECRET"}]', "0.keys: Extra"),
        ('[{"models": "", "url": "http://a/v1"}]', "0.models"),
        ('[{"models": "ft:*", "url": "http://a/v1", "name": "a"}]', "a pattern with a name"),
    ],
)
def test_a_setting_that_is_no_list_of_engines_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="it must be a list in JSON such as") as caught:
        parse_engines(text)

    assert told in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_the_key_of_an_engine_is_never_shown(settings: Settings) -> None:
    assert SECRET not in repr(settings)
    assert SECRET not in repr(parse_engines(settings.sampling_engines.get_secret_value()))
