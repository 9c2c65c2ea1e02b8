"""Keeps answers to polls for as long as nothing in the database has changed."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import Histogram

from app.api.admission.authentication import Authenticated
from app.api.requests import LoggedRequest
from app.core.access import Caller

MAX_ANSWER_BYTES = 64 * 1024
MAX_ANSWERS = 256
MAX_REQUEST_BYTES = 4096
"""Maximum size of a request that is recognised by its bytes. Clients send less than a quarter."""

Headers = list[tuple[bytes, bytes]]
Question = tuple[Caller, str, bytes, tuple[tuple[bytes, bytes], ...]]
"""What decides on an answer: caller, path, query and the headers that matter."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer in JSON, as the application made it."""

    route: str
    """Template of its path, for the metrics."""
    headers: Headers
    body: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What was sent for an answer, apart from the headers that differ each time."""

    authenticated: Authenticated
    request: LoggedRequest
    durations: Histogram
    """The metric that counts it."""
    status: int
    head: bytes
    """Headers, each with the end of its line."""
    body: bytes


class Memory:
    """Answers and replies that hold until the next commit.

    Attributes:
        answers: by what was asked.
        replies: by all bytes of a request, its credentials included.

    Args:
        version: returns a number that changes with every commit to the database, or None if it is
            unknown. Nothing is kept then.
    """

    def __init__(self, version: Callable[[], int | None]) -> None:
        self._read_version = version
        self._version: int | None = None
        self.answers: dict[Question, Answer] = {}
        self.replies: dict[bytes, Reply] = {}

    def refresh(self) -> int | None:
        """Forget everything if there was a commit. Returns the version of the database."""
        version = self._read_version()
        if version != self._version:
            self._version = version
            self.answers.clear()
            self.replies.clear()
        return version

    def is_at(self, version: int | None) -> bool:
        """Whether an answer that was made at this version may be kept."""
        return version is not None and version == self._version

    def keep_answer(self, question: Question, answer: Answer) -> None:
        """Keep an answer, unless it is large or there are enough."""
        if len(answer.body) <= MAX_ANSWER_BYTES and len(self.answers) < MAX_ANSWERS:
            self.answers[question] = answer

    def keep_reply(self, request: bytes, reply: Reply) -> None:
        """Keep a reply, unless its request is large or there are enough."""
        if len(request) <= MAX_REQUEST_BYTES and len(self.replies) < MAX_ANSWERS:
            self.replies[request] = reply
