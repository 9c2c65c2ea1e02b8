"""Sends the answer to a status poll only if it has changed, and makes it only if it may have.

Clients ask for a job's status many times between two of its steps, and each answer takes
processor time from the training.
"""

from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import CALLER
from app.api.metrics import ROUTE, route_of
from app.api.polls.entity_tags import entity_tag, lists_tag
from app.api.polls.memory import Answer, Headers, Question
from app.api.polls.repeats import Repeats

PATHS = "/v1/fine_tuning/jobs"
"""Path below which every JSON answer depends on the database alone."""

_DECISIVE = {b"accept"}
"""Headers of a request on which its answer depends, besides its caller."""

_WAITING = (b"wait=", b"stream=")
"""In the query of a request that is answered later than it is asked. Its answer is not reused."""


class RecentAnswers:
    """Middleware that gives each answer an ETag, and reuses answers until the next commit.

    Args:
        repeats: keeps what was sent, for requests with the same bytes.
    """

    def __init__(self, app: ASGIApp, *, repeats: Repeats) -> None:
        self._app = app
        self._repeats = repeats
        self._memory = repeats.memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_poll(scope):
            await self._app(scope, receive, send)
            return
        # Read before the answer is made, so that the answer is never older than the version.
        version = self._memory.refresh()
        question = _question(scope)
        answer = self._memory.answers.get(question)
        if answer is None:
            recorder = _Recorder(scope, send)
            await self._app(scope, receive, recorder)
            answer = recorder.answer
        if answer is None:  # it was passed on already
            return
        may_keep = self._memory.is_at(version) and not _is_answered_late(scope)
        if may_keep:
            self._memory.keep_answer(question, answer)
        await self._send(answer, scope, send, may_keep=may_keep)

    async def _send(self, answer: Answer, scope: Scope, send: Send, *, may_keep: bool) -> None:
        status, headers, body = HTTPStatus.OK, [*answer.headers], answer.body
        if lists_tag(_if_none_match(scope), answer.tag):
            status, body = HTTPStatus.NOT_MODIFIED, b""
            headers = [header for header in headers if header[0] == b"etag"]
        scope["state"][ROUTE] = answer.route
        if may_keep:
            self._repeats.keep(scope, answer.route, status, headers, body)
        start = {"status": status.value, "headers": headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": body})


class _Recorder:
    """Holds back a good answer in JSON that comes in one piece, and passes on every other."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None
        self.answer: Answer | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            is_json = (b"content-type", b"application/json") in message["headers"]
            if message["status"] == HTTPStatus.OK and is_json:
                self._start = message
                return
        elif self._start is not None:
            start, self._start = self._start, None
            if not message.get("more_body", False):
                self.answer = self._tagged(start["headers"], message.get("body", b""))
                return
            await self._send(start)
        await self._send(message)

    def _tagged(self, headers: Headers, body: bytes) -> Answer:
        tag = entity_tag(body)
        return Answer(route_of(self._scope), [*headers, (b"etag", tag.encode())], body, tag)


def _is_poll(scope: Scope) -> bool:
    is_get = scope["type"] == "http" and scope["method"] == "GET"
    return is_get and scope["path"].startswith(PATHS)


def _is_answered_late(scope: Scope) -> bool:
    return any(word in scope["query_string"] for word in _WAITING)


def _question(scope: Scope) -> Question:
    headers = tuple(header for header in scope["headers"] if header[0] in _DECISIVE)
    return scope["state"][CALLER], scope["path"], scope["query_string"], headers


def _if_none_match(scope: Scope) -> str:
    values = [value for name, value in scope["headers"] if name == b"if-none-match"]
    return b",".join(values).decode("latin-1")
