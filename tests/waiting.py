"""Waiting for something to become true: never for longer than it takes, never for ever."""

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_BETWEEN_LOOKS_S = 0.05


def wait_until(look: Callable[[], T], *, within_s: float) -> T:
    """Look again and again; returns the first thing seen that is true.

    Raises:
        AssertionError: there was none in this time.
    """
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not (seen := look()):
        assert time.monotonic() < deadline, f"still {seen!r} after {within_s} s"
        pause.wait(_BETWEEN_LOOKS_S)
    return seen


def fastest(measure: Callable[[], float], *, enough_s: float, tries: int = 20) -> float:
    """Measure again and again, because the machine may be busy with something else.

    Returns:
        The shortest time in seconds. The first that is less than `enough_s` ends the tries.
    """
    shortest_s = math.inf
    for _ in range(tries):
        shortest_s = min(shortest_s, measure())
        if shortest_s < enough_s:
            break
    return shortest_s
