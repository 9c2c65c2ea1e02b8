"""Waiting for something to become true: never for longer than it takes, never for ever."""

import threading
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

T = TypeVar("T")

_BETWEEN_LOOKS_S = 0.05
_TRIES = 9


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


def median_s(measure: Callable[[], float]) -> float:
    """The middle one of several times in seconds: the machine may be busy with something else."""
    return median(measure() for _ in range(_TRIES))
