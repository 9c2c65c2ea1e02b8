"""Gives the answer to a status poll again for as long as nothing in the database has changed.

Clients ask for a job's status many times between two of its steps, on the processor that trains it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = "/v1/fine_tuning/jobs"
"""What is below here and answers with JSON, answers by the database alone."""

MAX_ANSWER_BYTES = 64 * 1024
MAX_ANSWERS = 256

_HEADERS = {b"accept", b"authorization"}
"""Of a request: its answer depends on them, too."""

_Key = tuple[str, bytes, tuple[tuple[bytes, bytes], ...]]


@dataclass(frozen=True, slots=True)
class _Answer:
    headers: list[tuple[bytes, bytes]]
    body: bytes


class RecentAnswers:
    """Middleware.

    Args:
        version: a number that is another after every commit to the database; None when it cannot
            be told, and then nothing is given twice.
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
        ):
            await self._app(scope, receive, send)
            return
        # Before the answer is made: of what is committed meanwhile, it may show more, never less.
        version = self._read_version()
        if version != self._version:
            self._version = version
            self._answers.clear()
        key = _key(scope)
        if version is None:
            await self._app(scope, receive, send)
        elif known := self._answers.get(key):
            start = {"status": HTTPStatus.OK.value, "headers": [*known.headers]}
            await send({"type": "http.response.start", **start})
            await send({"type": "http.response.body", "body": known.body})
        else:
            recorder = _Recorder(send)
            await self._app(scope, receive, recorder)
            # Unless another request has seen a newer version meanwhile.
            if recorder.answer and version == self._version and len(self._answers) < MAX_ANSWERS:
                self._answers[key] = recorder.answer


class _Recorder:
    """Sends an answer on, and keeps it if it is one that may be given again."""

    def __init__(self, send: Send) -> None:
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
                self.answer = _Answer(self._headers, body)
            self._is_good = False  # what comes in several parts is not kept
        await self._send(message)


def _key(scope: Scope) -> _Key:
    """What is asked for, in which form, and by whom."""
    headers = tuple(header for header in scope["headers"] if header[0] in _HEADERS)
    return scope["path"], scope["query_string"], headers
