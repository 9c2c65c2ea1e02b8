"""Keeps a process from slowing down a training beside it, by stopping it for most of the time.

A low priority is not enough. The threads of a training wait for each other several hundred times a
second. Whenever one of them waits, the kernel gives its processor to the other process for some
milliseconds, so that all of them wait: a check at niceness 10 slowed a training by 43 %, and one
whose session had niceness 15 by 23 %. So the process has its usual priority: in the little time
that it runs, it should get a processor of its own.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

RUNS_S = 0.04
STOPS_S = 1.16
"""The process runs in 3 % of each period of these two together. Training loses a little more than
that, because its data has left the caches."""


@contextmanager
def throttled(group: int, is_busy: Callable[[], bool]) -> Generator[None]:
    """Stop a process group for most of the time while the block runs and the machine is busy.

    Args:
        group: id of the group.
        is_busy: whether a job trains on the machine. Asked in each period.
    """
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(RUNS_S):
            if is_busy():
                _send(group, signal.SIGSTOP)
                is_over.wait(STOPS_S)
                _send(group, signal.SIGCONT)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _send(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, number)
