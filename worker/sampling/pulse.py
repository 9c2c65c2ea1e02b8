"""Shows whether a thread makes progress, so that one that hangs is noticed."""

import math
import time

STEP_S = 120.0
"""Time in which a thread finishes a step, or has prepared a request whose model is loaded, in
seconds. That is many times what either takes on a slow machine beside a training."""

LOADING_S = 900.0
"""Time in which a base model and an adapter are loaded, in seconds."""


class Pulse:
    """By when a thread will have gone on. One thread writes it, and another one reads it.

    The time in which the machine sleeps does not count.
    """

    def __init__(self) -> None:
        self._deadline_s = math.inf

    def expect(self, within_s: float) -> None:
        """Note that the thread works, and calls this or `rest` within so many seconds."""
        self._deadline_s = time.monotonic() + within_s

    def rest(self) -> None:
        """Note that the thread waits for work, for however long that takes."""
        self._deadline_s = math.inf

    @property
    def is_steady(self) -> bool:
        """Whether the thread is not late."""
        return time.monotonic() <= self._deadline_s
