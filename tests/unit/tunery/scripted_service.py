"""A service whose answers a test has written down."""

import hashlib
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, cast


class Got(NamedTuple):
    """A request that the service has got."""

    path: str
    """With its query."""
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes


class ScriptedService(ThreadingHTTPServer):
    """Gives its answers one after the other, whatever it is asked.

    Attributes:
        answers: status and content of each. The ETag is the sha256 of the content.
        got: the requests so far.
    """

    def __init__(self, answers: Iterator[tuple[int, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.got: list[Got] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        service = cast("ScriptedService", self.server)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        service.got.append(Got(self.path, headers, body))
        status, content = next(service.answers)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base's name
        pass


@contextmanager
def scripted_service(*answers: tuple[int, bytes]) -> Generator[ScriptedService]:
    with ScriptedService(iter(answers)) as service:
        serving = threading.Thread(target=service.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield service
        finally:
            service.shutdown()
            serving.join()
