"""Trains in a child that is forked from a process with the libraries and the model loaded."""

import logging
import os
import signal
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from worker.launch.fork_client import ForkClient, ForkedChild, ForkServerError
from worker.launch.launcher import Ending, Signal, Watcher
from worker.launch.locks import try_lock
from worker.launch.sandbox.confinement import Confinement
from worker.launch.sandbox.sandbox import NO_SANDBOX, Sandbox
from worker.launch.supervision import (
    LOCK_S,
    LocalLauncher,
    is_settled,
    start_locked,
    supervise,
)
from worker.launch.throttle import throttled

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Failed warm starts in a row after which only cold starts are tried, to save the time."""


class _SignalledError(Exception):
    """A signal was requested before there was a child to send it to."""

    def __init__(self, requested: Signal) -> None:
        super().__init__(requested)
        self.requested = requested


class WarmLauncher:
    """A `Launcher` on this machine, for one worker thread; on Linux.

    A child does not import the libraries, and it does not load the base model while that stays the
    same. If the fork server fails, the job is started as `LocalLauncher` does it.

    Args:
        idle_s: how long the fork server is kept while there is nothing to train, in seconds.
        sandbox: contains each training process; the fork server stays outside.
        lock_s: how long to wait for the job's previous training process to die, in seconds.
    """

    def __init__(
        self,
        module: str = "worker.train",
        *,
        idle_s: float,
        sandbox: Sandbox = NO_SANDBOX,
        lock_s: float = LOCK_S,
    ) -> None:
        self._module = module
        self._idle_s = idle_s
        self._lock_s = lock_s
        self._has_preloaded = False
        self._sandbox = sandbox
        self._cold = LocalLauncher(module, sandbox=sandbox, lock_s=lock_s)
        self._fork_server: ForkClient | None = None
        self._failures = 0

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        self._has_preloaded = True
        with self._sandbox.confine(directory, self._module) as confinement:
            return self._run(directory, watcher, confinement)

    def _run(self, directory: Path, watcher: Watcher, confinement: Confinement | None) -> Ending:
        if self._failures == MAX_FAILURES:
            return self._cold.run_confined(directory, watcher, confinement)
        try:
            child, log = self._start(directory, watcher, confinement)
        except _SignalledError as error:
            self.close()
            return _ending_before_start(error.requested)
        except ForkServerError as error:
            self.close()
            self._failures += 1
            logger.warning("no warm start: %s", error)
            if self._failures == MAX_FAILURES:
                logger.warning("no more warm starts are tried")
            return self._cold.run_confined(directory, watcher, confinement)
        self._failures = 0
        with _buried(child):
            return supervise(child, child.output, log, watcher)

    def run_beside(
        self, directory: Path, watcher: Watcher, *, is_busy: Callable[[], bool]
    ) -> Ending | None:
        """Run a check in another child while one of this launcher's children trains.

        Any thread may call this. It never ends the fork server, which the training needs.

        Args:
            is_busy: whether the machine trains a job. While it does, the child is stopped for most
                of the time.

        Returns:
            None if there is no such fork server, or if it could not start the child.
        """
        fork_server = self._fork_server
        if fork_server is None or not fork_server.has_children:
            return None
        with self._sandbox.confine(directory, self._module) as confinement:
            try:
                child, log = self._fork(fork_server, directory, watcher, confinement)
            except _SignalledError as error:
                return _ending_before_start(error.requested)
            except ForkServerError as error:
                logger.warning("no warm start of a check: %s", error)
                return None
            may_stop = partial(is_settled, directory, confinement)
            with _buried(child), throttled(child.pid, is_busy, may_stop=may_stop) as meter:
                ending = supervise(child, child.output, log, watcher)
        was_killed = ending.was_killed or fork_server.has_been_ended  # then it died with that
        return replace(ending, was_killed=was_killed, processor_s=meter.processor_s)

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Load the libraries for the first job, once: later jobs find a process that has them.

        If that fails, the first job notices and is started as `LocalLauncher` does it.
        """
        if self._fork_server is not None and self._fork_server.has_retired:
            self.close()
        if self._has_preloaded or is_busy() or (descriptor := try_lock(lock)) is None:
            return
        self._has_preloaded = True
        try:
            self._fork_server = ForkClient(self._module, idle_s=self._idle_s)
            self._fork_server.preload(lock=descriptor)
        except ForkServerError as error:
            self.close()
            logger.warning("the libraries cannot be preloaded: %s", error)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """End the fork server to free its memory. The next job starts another one."""
        if self._fork_server is not None:
            self._fork_server.end()
            self._fork_server = None

    def _start(
        self, directory: Path, watcher: Watcher, confinement: Confinement | None
    ) -> tuple[ForkedChild, int]:
        if self._fork_server is not None and self._fork_server.has_retired:
            self.close()
        if self._fork_server is not None:
            try:
                return self._fork(self._fork_server, directory, watcher, confinement)
            except ForkServerError as error:
                logger.warning("starting another fork server: %s", error)
                self.close()
        self._fork_server = ForkClient(self._module, idle_s=self._idle_s)
        return self._fork(self._fork_server, directory, watcher, confinement)

    def _fork(
        self,
        fork_server: ForkClient,
        directory: Path,
        watcher: Watcher,
        confinement: Confinement | None,
    ) -> tuple[ForkedChild, int]:
        def check_signal() -> None:
            if (requested := watcher.requested_signal()) is not Signal.CONTINUE:
                raise _SignalledError(requested)

        # Before taking the lock: loading may take long, and the lock keeps others from the job.
        fork_server.prepare(directory, while_waiting=check_signal)
        with ExitStack() as undo:

            def start(lock: int, log: int) -> ForkedChild:
                child = fork_server.fork(directory, confinement, log=log, lock=lock)
                undo.callback(child.bury)
                return child

            started = start_locked(directory, watcher, start, within_s=self._lock_s)
            undo.pop_all()
            return started


@contextmanager
def _buried(child: ForkedChild) -> Generator[None]:
    """Release the process id of the child after the block, in which it ends."""
    try:
        yield
    finally:
        child.bury()


def _ending_before_start(requested: Signal) -> Ending:
    """Return how a child ends that is signalled while it loads, with nothing to save yet."""
    is_killed = requested is Signal.KILL
    return Ending(
        exit_code=-(signal.SIGKILL if is_killed else signal.SIGTERM),
        was_asked=not is_killed,
        was_killed=is_killed,
        log_tail="",
    )
