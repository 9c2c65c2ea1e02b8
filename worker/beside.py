"""A thread that does small things beside training: checks of data, and tasks."""

import logging
import threading
from collections.abc import Callable

from app.core.clock import steady_s
from app.core.errors import DatabaseAwayError, DatabaseBusyError
from worker.presence import Pace

logger = logging.getLogger(__name__)

IDLE_S = 1.0
"""Pause when there was nothing to do, in seconds."""

MAX_IDLE_S = 10.0
"""The same where very many workers share the database."""

PAUSE_AFTER_FAILURE_S = 5.0
"""Pause after a try that failed, in seconds, such as on a full disk."""


class BesideTraining:
    """Does one thing after another, until told to stop.

    Args:
        do_next: does the next thing. Its argument returns when a worker that is told to stop must
            have left it, by `steady_s`; None while it may go on. Returns seconds to wait before the
            next call, or None if there was nothing to do.
        pace: stretches the pause when there was nothing to do.
    """

    def __init__(
        self,
        do_next: Callable[[Callable[[], float | None]], float | None],
        pace: Pace | None = None,
    ) -> None:
        self._do_next = do_next
        self._pace = pace or Pace()
        self._stopping = threading.Event()
        self._stop_at_s: float | None = None

    def stop(self, *, at_once: bool = False) -> None:
        """Give back what is being done. It has no progress to save."""
        del at_once
        self._stop_at_s = steady_s()
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                idle_s = self._do_next(lambda: self._stop_at_s)
            except DatabaseAwayError as error:
                logger.warning("trying again: %s", error.for_operator)
                idle_s = PAUSE_AFTER_FAILURE_S
            except DatabaseBusyError:
                idle_s = None
            except Exception:  # what was claimed, if anything, is taken again after its lease
                logger.exception("it failed; trying again in a moment")
                idle_s = PAUSE_AFTER_FAILURE_S
            if idle_s is None:
                idle_s = self._pace.always_s(IDLE_S, most_s=MAX_IDLE_S)
            self._stopping.wait(idle_s)
