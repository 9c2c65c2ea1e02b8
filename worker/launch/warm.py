"""Trains in a child that is forked from a process which has everything loaded already."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from app.core.job.training_events import TrainingEvent
from worker.launch.fork_client import ForkClient, ForkedChild, ForkServerError
from worker.launch.job_lock import try_lock
from worker.launch.launcher import Ending, Order
from worker.launch.local import LocalLauncher
from worker.launch.supervision import start_locked, supervise

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Warm starts that fail in a row before no more are tried: each costs the time of a cold one."""


class _OrderedError(Exception):
    """An order came before there was a child to carry it out."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.order = order


class WarmLauncher:
    """A `Launcher` on this machine, for one worker thread; on Linux.

    A child costs neither imports nor, as long as the base model stays the same, its loading. Where
    that fails, it is started as `LocalLauncher` does it.

    Args:
        idle_s: how long that process is kept while there is nothing to train.
    """

    def __init__(self, module: str = "worker.train", *, idle_s: float) -> None:
        self._module = module
        self._idle_s = idle_s
        self._has_preloaded = False
        self._cold = LocalLauncher(module)
        self._fork_server: ForkClient | None = None
        self._failures = 0

    def run(
        self,
        directory: Path,
        *,
        on_event: Callable[[TrainingEvent], None],
        order: Callable[[], Order],
    ) -> Ending:
        self._has_preloaded = True
        if self._failures == MAX_FAILURES:
            return self._cold.run(directory, on_event=on_event, order=order)
        try:
            child = self._start(directory, order)
        except _OrderedError as ordered:
            self.close()
            return _ending_before_it_began(ordered.order)
        except ForkServerError as error:
            self.close()
            self._failures += 1
            logger.warning("no warm start: %s", error)
            if self._failures == MAX_FAILURES:
                logger.warning("no more warm starts are tried")
            return self._cold.run(directory, on_event=on_event, order=order)
        except OSError:
            self.close()  # with the child, if there is one already
            raise
        self._failures = 0
        try:
            return supervise(child, child.output, directory, on_event=on_event, order=order)
        finally:
            child.bury()

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Load the libraries for the first job, once: afterwards, a process is kept after each job.

        If that fails, the first job finds out and is started as `LocalLauncher` does it.
        """
        if self._fork_server is not None and self._fork_server.has_retired:
            self.close()
        if self._has_preloaded or is_busy() or (held := try_lock(lock)) is None:
            return
        self._has_preloaded = True
        try:
            self._fork_server = ForkClient(self._module, idle_s=self._idle_s)
            self._fork_server.preload(lock=held)
        except ForkServerError as error:
            self.close()
            logger.warning("the libraries cannot be preloaded: %s", error)
        finally:
            os.close(held)

    def close(self) -> None:
        """Give back the memory; the next job makes another fork server."""
        if self._fork_server is not None:
            self._fork_server.end()
            self._fork_server = None

    def _start(self, directory: Path, order: Callable[[], Order]) -> ForkedChild:
        if self._fork_server is not None and self._fork_server.has_retired:
            self.close()
        if self._fork_server is not None:
            try:
                return _fork(self._fork_server, directory, order)
            except ForkServerError as error:
                logger.warning("another fork server is tried: %s", error)
                self.close()
        self._fork_server = ForkClient(self._module, idle_s=self._idle_s)
        return _fork(self._fork_server, directory, order)


def _fork(fork_server: ForkClient, directory: Path, order: Callable[[], Order]) -> ForkedChild:
    def look() -> None:
        if (found := order()) is not Order.GO_ON:
            raise _OrderedError(found)

    # Before the lock is taken: loading may take long, and meanwhile nobody could take the job over.
    fork_server.prepare(directory, while_waiting=look)
    return start_locked(
        directory, order, lambda lock, log: fork_server.fork(directory, log=log, lock=lock)
    )


def _ending_before_it_began(order: Order) -> Ending:
    """As of a child that is told to end while it loads, and has nothing to save yet."""
    is_killed = order is Order.END
    return Ending(
        exit_code=-(signal.SIGKILL if is_killed else signal.SIGTERM),
        was_asked=not is_killed,
        was_killed=is_killed,
        log_tail="",
    )
