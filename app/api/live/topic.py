"""What many readers follow: each change is read and encoded once, and kept for them for a while."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from app.core.errors import ServiceError

MAX_KEPT_BYTES = 256 * 1024
"""How much of what was published is kept for slow readers. The newest part is always kept."""

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Update(Generic[State]):
    """What one look at the database has found."""

    state: State
    news: bytes = b""
    """Messages for every reader; empty if nothing has changed."""
    has_more: bool = False
    """Whether there is more than was read at once."""
    ending: bytes = b""
    """Messages after which every stream ends; empty if the streams go on."""


class Part(NamedTuple, Generic[State]):
    """Messages that were published at once."""

    messages: bytes
    state: State
    """State of the topic after these messages."""


class Topic(Generic[State]):
    """A job or a project that readers follow. All of it but `look` runs in the event loop.

    Args:
        look: reads what has changed since a state, or the first state if that is None. It runs in
            another thread, and raises DatabaseBusyError if the database is busy or away.

    Attributes:
        readers: how many readers follow it.
        is_stale: whether the database may have changed since the last look.
        looked_at_s: when the last look began.
        ending: messages after which every stream ends; empty if the streams go on.
    """

    def __init__(self, look: Callable[[State | None], Update[State]]) -> None:
        self.look = look
        self.lock = asyncio.Lock()
        self.readers = 0
        self.is_stale = True
        self.looked_at_s = float("-inf")
        self.ending = b""
        self._state: State | None = None
        self._kept: deque[Part[State]] = deque()
        self._kept_bytes = 0
        self._dropped = 0
        self._has_news = asyncio.Event()

    @property
    def state(self) -> State:
        """What the last look has found. There must have been one."""
        assert self._state is not None
        return self._state

    @property
    def known_state(self) -> State | None:
        return self._state

    @property
    def published(self) -> int:
        """Number of parts that were published so far."""
        return self._dropped + len(self._kept)

    def part(self, number: int) -> Part[State] | None:
        """The part with this number, from 0. None if it is no longer kept."""
        return self._kept[number - self._dropped] if number >= self._dropped else None

    def take(self, update: Update[State]) -> None:
        """Publish what a look has found."""
        self._state = update.state
        self.ending = update.ending
        if update.has_more:
            self.is_stale, self.looked_at_s = True, float("-inf")
        if update.news:
            self.publish(update.news)
        elif update.ending:
            self.wake()

    def publish(self, messages: bytes) -> None:
        self._kept.append(Part(messages, self.state))
        self._kept_bytes += len(messages)
        while self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft().messages)
            self._dropped += 1
        self.wake()

    def wake(self) -> None:
        """Let every reader see whether there is something for it."""
        has_news, self._has_news = self._has_news, asyncio.Event()
        has_news.set()

    async def wait_for_news(self) -> None:
        """Wait until `wake` is called."""
        await self._has_news.wait()


class Reader(Generic[State]):
    """One reader of a topic.

    Args:
        topic: what it follows.
        project_id: project of its key.
        recheck: raises UnauthenticatedError if its key is no longer valid.

    Attributes:
        is_over: whether its stream has to end.
        refusal: why, if its key is no longer valid.
    """

    def __init__(
        self, topic: Topic[State], project_id: str, recheck: Callable[[], Awaitable[object]]
    ) -> None:
        self.topic = topic
        self.project_id = project_id
        self.recheck = recheck
        self.is_over = False
        self.refusal: ServiceError | None = None
        self._next_part = topic.published

    def end(self, refusal: ServiceError | None = None) -> None:
        """End its stream as soon as possible."""
        self.is_over, self.refusal = True, refusal
        self.topic.wake()

    def catch_up(self) -> State:
        """Leave out what was published so far. Returns the state of the topic after that."""
        self._next_part = self.topic.published
        return self.topic.state

    async def news(self) -> AsyncGenerator[Part[State]]:
        """Yield what is published, as it comes, until the stream ends.

        It ends early if the reader is so slow that the next part is no longer kept. Then `is_over`
        is false.
        """
        topic = self.topic
        while not self.is_over:
            if self._next_part < topic.published:
                part = topic.part(self._next_part)
                if part is None:
                    return
                self._next_part += 1
                yield part
            elif topic.ending:
                self.is_over = True
                yield Part(topic.ending, topic.state)
            else:
                await topic.wait_for_news()
