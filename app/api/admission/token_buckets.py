"""Limits how many requests a minute each project sends, in one process."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from app.core.clock import steady_s

_SECONDS_A_MINUTE = 60


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at_s: float


class TokenBuckets:
    """One bucket per project, filled evenly. A full one holds the requests of one minute."""

    def __init__(self, *, monotonic_s: Callable[[], float] = steady_s) -> None:
        self._monotonic_s = monotonic_s
        self._buckets: dict[str, _Bucket] = {}

    def take(self, project_id: str, *, per_minute: int) -> int:
        """Take a token. Returns 0, or in how many seconds there is one, if none is left.

        Args:
            per_minute: tokens that the bucket gets in a minute, and holds at most.
        """
        now_s = self._monotonic_s()
        bucket = self._buckets.setdefault(project_id, _Bucket(per_minute, now_s))
        gained = (now_s - bucket.filled_at_s) * per_minute / _SECONDS_A_MINUTE
        bucket.tokens = min(per_minute, bucket.tokens + gained)
        bucket.filled_at_s = now_s
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0
        return math.ceil((1 - bucket.tokens) * _SECONDS_A_MINUTE / per_minute)
