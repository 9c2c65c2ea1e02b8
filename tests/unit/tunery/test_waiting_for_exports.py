"""Waiting for an export of a service that is busy in between."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tunery.client.downloads.exports import fetch_export
from tunery.client.service.api import Api, AwayError
from tunery.client.service.profile import Profile

ADAPTER = b"GGUF and more"
IN_THE_MAKING = json.dumps({"progress": 0.5, "retry_after": 0}).encode()


class _Service(BaseHTTPRequestHandler):
    statuses: Iterator[int]

    def do_GET(self) -> None:
        status = next(type(self).statuses)
        content = {200: ADAPTER, 202: IN_THE_MAKING}.get(status, b"{}")
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", f'"{hashlib.sha256(ADAPTER).hexdigest()}"')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base's name
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Service) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield Api(Profile(f"http://127.0.0.1:{server.server_port}/v1"), is_hurried=True)
        server.shutdown()
        serving.join()


def fetch(api: Api, directory: Path) -> list[Path]:
    target = directory / "adapter.gguf"
    return fetch_export(api, "ftjob-1", target, checkpoint=None, variant="gguf", unpack=False)


def test_a_service_that_is_busy_while_it_makes_an_export_is_asked_again(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Service, "statuses", iter([202, 503, 429, 202, 200, 200]), raising=False)

    (path,) = fetch(api, tmp_path)

    assert path.read_bytes() == ADAPTER


def test_nobody_waits_for_a_service_that_was_never_there(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Service, "statuses", iter([503]), raising=False)

    with pytest.raises(AwayError):
        fetch(api, tmp_path)
