"""Watches the database for all readers of this process, and only while there are any."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from typing import Any

from anyio import CapacityLimiter, to_thread

from app.api.live.messages import COMMENT
from app.api.live.topic import Reader, State, Topic, Update
from app.api.metrics import RequestMetrics
from app.core.clock import steady_s
from app.core.db.session import Database
from app.core.errors import (
    OperatorError,
    RateLimitError,
    ServiceError,
    TooManyStreamsError,
    UnauthenticatedError,
)

WATCH_INTERVAL_S = 0.2
"""Interval at which the database is asked whether anything has changed."""

LOOK_INTERVAL_S = 0.5
"""Time between two looks at the same job or project at least, so that a training whose steps take
milliseconds is not slowed by its readers."""

COMMENT_INTERVAL_S = 15.0
RECHECK_INTERVAL_S = 2.0
"""Interval at which the keys of all readers are checked again."""

MAX_THREADS = 4
"""How many threads read for streams: other requests must find threads and connections."""

SHARE_OF_CONNECTIONS = 0.5
"""Fraction of all connections that streams may take."""
SHARE_OF_PROJECT = 0.5
"""Fraction of all streams that one project may have."""

_RETRY_AFTER_S = 10
_PAUSE_AFTER_FAILURE_S = 5.0

logger = logging.getLogger(__name__)


class Hub:
    """The topics that are followed, and the task that looks for changes in them.

    Args:
        database: where the changes are.
        metrics: counts streams and what is read for them.
        max_connections: how many connections the process accepts in all.
    """

    def __init__(
        self, database: Database, metrics: RequestMetrics, *, max_connections: int
    ) -> None:
        self._database = database
        self._metrics = metrics
        self.max_streams = max(1, int(max_connections * SHARE_OF_CONNECTIONS))
        self._topics: dict[Hashable, Topic[Any]] = {}
        self._readers: dict[Reader[Any], Hashable] = {}
        self._streams_of: Counter[str] = Counter()
        self._threads = CapacityLimiter(MAX_THREADS)
        self._task: asyncio.Task[None] | None = None
        self._version: int | str | None = None
        self._commented_at_s = self._rechecked_at_s = 0.0

    async def join(
        self,
        key: Hashable,
        look: Callable[[State | None], Update[State]],
        *,
        project_id: str,
        recheck: Callable[[], Awaitable[object]],
    ) -> Reader[State]:
        """Follow a topic from now on. Call `leave` afterwards.

        Args:
            key: identifies the topic. It must name the project.
            look: see `Topic`; used if nobody follows the topic yet.
            project_id: see `Reader`.
            recheck: see `Reader`.

        Raises:
            RateLimitError: the project has as many streams as it may have.
            TooManyStreamsError: the service has as many streams as it serves.
            ServiceError: the first look has failed: for example, there is no such job.
        """
        self._require_room(project_id)
        topic: Topic[State] = self._topics.setdefault(key, Topic(look))
        reader = Reader(topic, project_id, recheck)
        topic.readers += 1
        self._readers[reader] = key
        self._metrics.open_streams.inc()
        self._streams_of[project_id] += 1
        try:
            if topic.known_state is None:
                await self.refresh(topic)
        except BaseException:
            self.leave(reader)
            raise
        reader.catch_up()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return reader

    def count_streams(self) -> int:
        """Number of readers, of all projects."""
        return len(self._readers)

    def leave(self, reader: Reader[Any]) -> None:
        """Forget a reader, and its topic if nobody else follows it."""
        key = self._readers.pop(reader)
        self._metrics.open_streams.dec()
        self._streams_of[reader.project_id] -= 1
        reader.topic.readers -= 1
        if not reader.topic.readers:
            del self._topics[key]

    async def refresh(self, topic: Topic[Any]) -> None:
        """Look now. Who asks for the same at the same time gets the same look.

        Raises:
            ServiceError: as `join`.
        """
        asked_at_s = steady_s()
        async with topic.lock:
            if topic.looked_at_s > asked_at_s:
                return
            topic.is_stale, topic.looked_at_s = False, steady_s()
            try:
                update = await self.read(topic.look, topic.known_state)
            except BaseException:
                topic.is_stale, topic.looked_at_s = True, float("-inf")
                raise
            topic.take(update)

    async def read(self, act: Callable[..., State], *arguments: Any) -> State:
        """Run what reads the database for a stream in another thread."""
        self._metrics.stream_reads.inc()
        return await to_thread.run_sync(act, *arguments, limiter=self._threads)

    async def close(self) -> None:
        """Stop watching. All streams have ended."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _require_room(self, project_id: str) -> None:
        if len(self._readers) >= self.max_streams:
            raise TooManyStreamsError(
                f"The service has {self.max_streams:,} open streams, as many as it serves. Try "
                "again in a moment, or poll."
            )
        its_share = max(1, int(self.max_streams * SHARE_OF_PROJECT))
        if self._streams_of[project_id] >= its_share:
            raise RateLimitError(
                f"The project has {its_share:,} open streams, as many as it may have. Close some "
                "of them, or poll.",
                retry_after_s=_RETRY_AFTER_S,
            )

    async def _run(self) -> None:
        while self._topics:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                await self._tick()
            except (ServiceError, OperatorError) as error:
                logger.warning("streams have to wait for the database: %s", error)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
            except Exception:
                logger.exception("changes were not read; trying again in a moment")
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)

    async def _tick(self) -> None:
        now_s = steady_s()
        known = [topic for topic in self._topics.values() if topic.known_state is not None]
        if now_s - self._commented_at_s >= COMMENT_INTERVAL_S:
            self._commented_at_s = now_s
            for topic in known:
                topic.publish(COMMENT)
        await self._notice_commits()
        for topic in known:
            if topic.is_stale and now_s - topic.looked_at_s >= LOOK_INTERVAL_S:
                await self.refresh(topic)
        if now_s - self._rechecked_at_s >= RECHECK_INTERVAL_S:
            self._rechecked_at_s = now_s
            await self._recheck()

    async def _notice_commits(self) -> None:
        version = self._database.version()
        if version is None:
            ask = self._database.ask_version
            version = await to_thread.run_sync(ask, limiter=self._threads)
        if version is None or version != self._version:
            self._version = version
            for topic in self._topics.values():
                topic.is_stale = True

    async def _recheck(self) -> None:
        """End the streams of keys that were revoked or have expired."""
        for reader in list(self._readers):
            try:
                await reader.recheck()
            except UnauthenticatedError as refusal:
                reader.end(refusal)
