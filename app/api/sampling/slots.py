"""Bounds how many requests for completions are open at once, each with two connections."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from app.api.metrics import RequestMetrics
from app.core.errors import RateLimitError, TooManyStreamsError

SHARE_OF_CONNECTIONS = 0.25
"""Fraction of all connections that requests for completions may take."""
SHARE_OF_PROJECT = 0.5
"""Fraction of them that one project may have."""

_RETRY_AFTER_S = 5


class SamplingSlots:
    """The open requests for completions of this process. All of it runs in the event loop.

    Args:
        max_connections: how many connections the process accepts in all.
        metrics: shows how many requests are open.
    """

    def __init__(self, metrics: RequestMetrics, *, max_connections: int) -> None:
        self.max_requests = max(1, int(max_connections * SHARE_OF_CONNECTIONS))
        self.max_of_project = max(1, int(self.max_requests * SHARE_OF_PROJECT))
        self._metrics = metrics
        self._open_of: Counter[str] = Counter()

    @contextmanager
    def taken(self, project_id: str) -> Generator[None]:
        """Count a request of a project as open.

        Raises:
            RateLimitError: the project has as many open requests as it may have.
            TooManyStreamsError: so has the process.
        """
        if self._open_of.total() >= self.max_requests:
            raise TooManyStreamsError(
                f"The service answers {self.max_requests:,} requests for completions, as many as "
                "it answers at once. Try again in a moment."
            )
        if self._open_of[project_id] >= self.max_of_project:
            raise RateLimitError(
                f"The project has {self.max_of_project:,} open requests for completions, as many "
                "as it may have. Wait until some of them are answered.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._open_of[project_id] += 1
        self._metrics.open_samplings.inc()
        try:
            yield
        finally:
            self._metrics.open_samplings.dec()
            self._open_of[project_id] -= 1
            if not self._open_of[project_id]:
                del self._open_of[project_id]
