"""A thread that does small things beside training: checks of data, and tasks."""

import logging
import threading
from collections.abc import Callable

from app.core.clock import steady_s
from app.core.errors import DatabaseAwayError, DatabaseBusyError, StoreAwayError
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
        drained_s: returns when the machine was drained, by `steady_s`; None if it is not.
        pace: stretches the pause when there was nothing to do.
    """

    def __init__(
        self,
        do_next: Callable[[Callable[[], float | None]], float | None],
        drained_s: Callable[[], float | None] = lambda: None,
        pace: Pace | None = None,
    ) -> None:
        self._do_next = do_next
        self._drained_s = drained_s
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
                is_drained = self._drained_s() is not None
                idle_s = None if is_drained else self._do_next(self._must_leave_at_s)
            except (DatabaseAwayError, StoreAwayError) as error:
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

    def _must_leave_at_s(self) -> float | None:
        return self._drained_s() if self._stop_at_s is None else self._stop_at_s
