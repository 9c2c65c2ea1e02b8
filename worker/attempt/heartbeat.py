"""Calls back at a steady pace, whatever the thread that started it is busy with."""

import logging
import threading
from collections.abc import Callable
from typing import Self

logger = logging.getLogger(__name__)


class Heartbeat:
    """Beats while its block runs.

    Args:
        beat: called every `interval_s` from a thread of its own. What it raises is logged, and
            the next beat comes all the same.
    """

    def __init__(self, beat: Callable[[], None], *, interval_s: float) -> None:
        self._beat = beat
        self._interval_s = interval_s
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._has_ended.wait(self._interval_s):
            try:
                self._beat()
            except Exception:
                logger.exception("a heartbeat failed")
