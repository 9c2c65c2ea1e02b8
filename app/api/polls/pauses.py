"""Lets polls gather while the machine is busy, so that the process wakes up once for several.

Most of what a poll costs is the wake-up: it interrupts whatever computes on that processor, and
both find their caches empty afterwards.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sized

PAUSE_S = 0.02
"""Time for which polls gather. None waits longer for its answer because of that."""

_QUIET_S = 2 * PAUSE_S
"""Time after anything else in which there is no pause, so that a burst of connections, of which
the event loop accepts one each time that it wakes up, is served at full speed."""

_LOOK_INTERVAL_S = 1.0
_MIN_LOAD = 0.5
"""Load of each processor from which the machine counts as busy."""


class Pauses:
    """Stops the event loop for a moment after polls, unless there is anything else to do.

    A single client is never made to wait: it would only ask later.

    Args:
        read_load: returns the load of all processors together, as `uptime` shows it.
    """

    def __init__(
        self,
        *,
        read_load: Callable[[], float] = lambda: os.getloadavg()[0],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read_load = read_load
        self._sleep = sleep
        self._last_client = 0
        self._last_poll_s = float("-inf")
        self._other_work_s = float("-inf")
        self._looked_s = float("-inf")
        self._is_busy = False
        self._is_due = False

    def note_other_work(self, now_s: float) -> None:
        """Hold off pauses: a connection was made, or something else than a poll arrived.

        Args:
            now_s: time of the event loop, as everywhere in this class.
        """
        self._other_work_s = now_s

    def after_poll(self, client: int, under_way: Sized, now_s: float) -> None:
        """Pause once the answer is sent, if another client has just polled too.

        Args:
            client: identifies the connection.
            under_way: requests that the application works on.
        """
        is_crowded = client != self._last_client and now_s - self._last_poll_s < PAUSE_S
        self._last_client, self._last_poll_s = client, now_s
        is_quiet = now_s - self._other_work_s >= _QUIET_S
        if is_crowded and is_quiet and not self._is_due and self._is_machine_busy(now_s):
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._pause, under_way)

    def _pause(self, under_way: Sized) -> None:
        self._is_due = False
        if not under_way:
            self._sleep(PAUSE_S)

    def _is_machine_busy(self, now_s: float) -> bool:
        if now_s - self._looked_s >= _LOOK_INTERVAL_S:
            self._looked_s = now_s
            self._is_busy = self._read_load() >= _MIN_LOAD * (os.cpu_count() or 1)
        return self._is_busy
