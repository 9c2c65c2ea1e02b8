"""Logs the polls that are answered from memory: one line for those that are alike."""

import asyncio
from dataclasses import dataclass

from app.api.requests import LoggedRequest, log_access
from app.core.ids import IdPrefix, new_id

INTERVAL_S = 10.0
"""Time for which polls are counted into the same line, in seconds."""


@dataclass(slots=True)
class _Line:
    request_id: str
    polls: int = 0
    longest_s: float = 0.0


class PollLog:
    """Counts polls, and logs them at the end of each interval. Use it from the event loop only."""

    def __init__(self) -> None:
        self._lines: dict[tuple[LoggedRequest, int], _Line] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, request: LoggedRequest, status: int, seconds: float) -> str:
        """Count a poll. Returns its request id, which all polls of a line share."""
        line = self._lines.get((request, status))
        if line is None:
            line = self._lines[request, status] = _Line(new_id(IdPrefix.REQUEST))
        line.polls += 1
        line.longest_s = max(line.longest_s, seconds)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self.flush)
        return line.request_id

    def flush(self) -> None:
        """Log every line now."""
        lines, self._lines = self._lines, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for (request, status), line in lines.items():
            log_access(
                request,
                status,
                line.longest_s,
                request_id=line.request_id,
                polls=str(line.polls),
            )
