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

import psutil

from app.core.clock import steady_s

RUNS_S = 0.04
STOPS_S = 1.16
"""The process runs in 3 % of each period of these two together. Training loses a little more than
that, because its data has left the caches."""


_MEASURED_EVERY_S = 1.0
"""Interval at which processor time is measured, in seconds. What comes last is not counted."""


class Meter:
    """Measures the processor time of a process and its descendants while they live.

    Attributes:
        processor_s: what it was when it was last measured, in seconds.
    """

    def __init__(self, process: int) -> None:
        self.processor_s = 0.0
        self._process = process
        self._measured_s = steady_s()

    def measure_if_due(self) -> None:
        if steady_s() - self._measured_s < _MEASURED_EVERY_S:
            return
        self._measured_s = steady_s()
        with suppress(psutil.Error):  # it has just ended
            parent = psutil.Process(self._process)
            each = [one.cpu_times() for one in (parent, *parent.children(recursive=True))]
            total_s = sum(times.user + times.system for times in each)
            self.processor_s = max(self.processor_s, total_s)  # some may have ended


@contextmanager
def throttled(
    group: int, is_busy: Callable[[], bool], *, may_stop: Callable[[], bool] = lambda: True
) -> Generator[Meter]:
    """Stop a process group for most of the time while the block runs and the machine is busy.

    Args:
        group: id of the group, and of the process that leads it.
        is_busy: whether a job trains on the machine. Asked in each period.
        may_stop: whether all its processes die with this one, even while they are stopped.
            Asked until it is so.
    """
    is_over, meter = threading.Event(), Meter(group)

    def run() -> None:
        is_ready = False
        while not is_over.wait(RUNS_S):
            meter.measure_if_due()
            is_ready = is_ready or may_stop()
            if is_ready and is_busy():
                _send(group, signal.SIGSTOP)
                is_over.wait(STOPS_S)
                _send(group, signal.SIGCONT)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        is_over.set()
        thread.join()


def _send(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, number)
