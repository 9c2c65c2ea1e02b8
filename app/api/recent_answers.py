"""Reuses the answer to a status poll for as long as nothing in the database has changed.

Clients ask for a job's status many times between two of its steps, and each answer takes
processor time from the training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import CALLER
from app.api.metrics import ROUTE, route_of
from app.core.access import Caller

PATHS = "/v1/fine_tuning/jobs"
"""Path below which every JSON answer depends on the database alone."""

MAX_ANSWER_BYTES = 64 * 1024
MAX_ANSWERS = 256

_HEADERS = {b"accept"}
"""Headers of a request on which its answer depends, besides its caller."""

_Key = tuple[Caller, str, bytes, tuple[tuple[bytes, bytes], ...]]


@dataclass(frozen=True, slots=True)
class _Answer:
    route: str
    """Template of its path, for the metrics."""
    headers: list[tuple[bytes, bytes]]
    body: bytes


class RecentAnswers:
    """Middleware that reuses answers.

    Args:
        version: returns a number that changes with every commit to the database, or None if it is
            unknown. No answer is reused then.
    """

    def __init__(self, app: ASGIApp, *, version: Callable[[], int | None]) -> None:
        self._app = app
        self._read_version = version
        self._version: int | None = None
        self._answers: dict[_Key, _Answer] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] != "GET"
            or not scope["path"].startswith(PATHS)
            or b"wait=" in scope["query_string"]  # answered later than it is asked
        ):
            await self._app(scope, receive, send)
            return
        # Read before the answer is made, so that the answer is never older than the version.
        version = self._read_version()
        if version != self._version:
            self._version = version
            self._answers.clear()
        key = _key(scope)
        if version is None:
            await self._app(scope, receive, send)
        elif known := self._answers.get(key):
            scope["state"][ROUTE] = known.route
            start = {"status": HTTPStatus.OK.value, "headers": [*known.headers]}
            await send({"type": "http.response.start", **start})
            await send({"type": "http.response.body", "body": known.body})
        else:
            recorder = _Recorder(scope, send)
            await self._app(scope, receive, recorder)
            # An answer is not stored if another request has seen a newer version meanwhile.
            if recorder.answer and version == self._version and len(self._answers) < MAX_ANSWERS:
                self._answers[key] = recorder.answer


class _Recorder:
    """Passes an answer on, and keeps it if it can be reused."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_good = False
        self.answer: _Answer | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._headers = [*message["headers"]]
            is_json = (b"content-type", b"application/json") in self._headers
            self._is_good = message["status"] == HTTPStatus.OK and is_json
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            is_whole = not message.get("more_body", False)
            if self._is_good and is_whole and len(body) <= MAX_ANSWER_BYTES:
                self.answer = _Answer(route_of(self._scope), self._headers, body)
            self._is_good = False  # an answer in several parts is not kept
        await self._send(message)


def _key(scope: Scope) -> _Key:
    """Identifies requests with the same answer: caller, path, query and headers that matter."""
    headers = tuple(header for header in scope["headers"] if header[0] in _HEADERS)
    return scope["state"][CALLER], scope["path"], scope["query_string"], headers
