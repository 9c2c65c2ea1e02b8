"""Starts training processes on this machine, and supervises those of every launcher."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Protocol, TypeVar, cast

from app.core.job.child.training_events import ProtocolError, TrainingEvent, parse_event
from app.core.machine.linux import be_killed_with_parent
from app.core.machine.subprocesses import python_module, with_import_path
from worker.launch.child_output import EXIT_GRACE_S, ChildOutput
from worker.launch.launcher import SIGNAL_POLL_INTERVAL_S, Ending, Signal, Watcher
from worker.launch.locks import JobLock
from worker.launch.sandbox.apply import is_applied
from worker.launch.sandbox.confinement import Confinement
from worker.launch.sandbox.sandbox import NO_SANDBOX, Sandbox
from worker.launch.throttle import throttled

logger = logging.getLogger(__name__)

LOCK_S = 10.0
"""How long the previous attempt's process may take to die once it is killed, in seconds."""

PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH"),
    "CUDA_VISIBLE_DEVICES",  # Ray sets it for the GPU that it has reserved
)
"""Environment variables that a child inherits: no address, no secret."""


class Child(Protocol):
    """A process that leads its own process group. The part of `subprocess.Popen` needed here."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that killed it. None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return the same as `poll`.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        ...

    def terminate(self) -> None:
        """Send SIGTERM to the process, if it runs."""
        ...


ChildT = TypeVar("ChildT", bound=Child)


def start_locked(
    directory: Path,
    watcher: Watcher,
    start: Callable[[int, int], ChildT],
    *,
    within_s: float,
) -> tuple[ChildT, int]:
    """Start a child that holds the lock of the job for as long as it lives.

    Args:
        directory: the job directory. Its parent belongs to the job alone.
        start: starts the child. Its arguments are descriptors that the child inherits: the lock,
            and a pipe for its standard error.
        within_s: how long to wait for the lock, in seconds.

    Returns:
        The child, and the descriptor from which its standard error is read.

    Raises:
        JobLockedError: another process of the job lives on this machine and does not end.
    """
    job_lock = JobLock.of(directory)
    lock = job_lock.take(
        within_s=within_s, is_over=lambda: watcher.requested_signal() is Signal.KILL
    )
    log, its_log = os.pipe()
    try:
        child = start(lock, its_log)
        try:
            job_lock.name_holder(child.pid)
        except OSError:  # nobody could kill it later
            _kill(child)
            raise
    except BaseException:
        os.close(log)
        raise
    finally:
        os.close(lock)
        os.close(its_log)
    return child, log


def supervise(child: Child, events: IO[bytes], log: int, watcher: Watcher) -> Ending:
    """Relay the events of a child, pass requested signals on to it, and wait for its end.

    Args:
        child: the child, which leads its process group.
        events: where the child writes its events. It is closed in the end.
        log: descriptor from which its standard error is read. It is closed in the end.
        watcher: follows the child.

    Raises:
        ProtocolError: the child has written something that is not an event. It is killed.
    """
    output = ChildOutput(events.fileno(), log, is_dead=lambda: child.poll() is not None)
    supervisor = _Supervisor(child, watcher.requested_signal)
    supervisor.start()
    try:
        for line in output.lines():
            watcher.on_event(_parse(line))
        _await_exit(child)
    finally:
        supervisor.end()
        _kill(child)
        events.close()
        os.close(log)
    return Ending(
        child.wait(),
        was_asked=supervisor.has_asked,
        was_killed=supervisor.has_killed,
        log_tail=output.log_tail,
    )


def is_settled(directory: Path, confinement: Confinement | None) -> bool:
    """Whether a child may be stopped: a process that forks could lose its parent meanwhile.

    If it was stopped before it asked to die with its parent, it would stay stopped for ever.
    """
    return confinement is None or is_applied(directory)


def child_environment() -> dict[str, str]:
    """Return the environment of a child, or of the fork server that it is forked from."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return with_import_path(passed_on) | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


class LocalLauncher:
    """A `Launcher` that runs `python -m worker.train DIR` on this machine.

    The job directory's parent belongs to the job alone.

    Args:
        sandbox: contains the training process.
        lock_s: how long to wait for the job's previous training process to die, in seconds.
        is_busy: whether the machine trains a job. While it does, the process is stopped for most of
            the time; None never to stop it.
    """

    def __init__(
        self,
        module: str = "worker.train",
        *,
        sandbox: Sandbox = NO_SANDBOX,
        lock_s: float = LOCK_S,
        is_busy: Callable[[], bool] | None = None,
    ) -> None:
        self._is_busy = is_busy
        self._module = module
        self._sandbox = sandbox
        self._lock_s = lock_s

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Do nothing: no process outlives a job here."""

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        with self._sandbox.confine(directory, self._module) as confinement:
            return self.run_confined(directory, watcher, confinement)

    def run_confined(
        self, directory: Path, watcher: Watcher, confinement: Confinement | None
    ) -> Ending:
        """Run with what `Sandbox.confine` has prepared for this job."""

        def start(lock: int, log: int) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(  # noqa: S603 - our own module, on a directory we made
                _command(self._module, directory.resolve(), lock, confinement),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                pass_fds=[lock],  # held for as long as the child lives
                start_new_session=True,  # a Ctrl-C in a terminal is for the worker to handle
                # At once: a check is stopped beside training, and might never wake to ask for it.
                preexec_fn=be_killed_with_parent,  # noqa: PLW1509 - one system call, no locks
            )

        child, log = start_locked(directory, watcher, start, within_s=self._lock_s)
        events = cast("IO[bytes]", child.stdout)
        if self._is_busy is None:
            return supervise(child, events, log, watcher)
        may_stop = partial(is_settled, directory, confinement)
        with throttled(child.pid, self._is_busy, may_stop=may_stop) as meter:
            ending = supervise(child, events, log, watcher)
        return replace(ending, processor_s=meter.processor_s)


def _command(module: str, directory: Path, lock: int, confinement: Confinement | None) -> list[str]:
    if confinement is None:
        return python_module(module, str(directory))
    what = confinement.model_dump_json()
    return python_module("worker.launch.cold_start", module, str(directory), str(lock), what)


class _Supervisor(threading.Thread):
    """Passes requested signals on, also while the thread that relays events is busy with one."""

    def __init__(self, child: Child, requested_signal: Callable[[], Signal]) -> None:
        super().__init__(daemon=True)
        self._child = child
        self._requested_signal = requested_signal
        self._has_ended = threading.Event()
        self.has_asked = False
        self.has_killed = False

    def run(self) -> None:
        while not self._has_ended.wait(SIGNAL_POLL_INTERVAL_S):
            match self._requested_signal():
                case Signal.CONTINUE:
                    continue
                case Signal.SAVE_AND_STOP:
                    if not self.has_asked:
                        self.has_asked = True
                        self._child.terminate()
                case Signal.KILL:
                    self.has_killed = True
                    _kill(self._child)
                    return

    def end(self) -> None:
        self._has_ended.set()
        self.join()


def _parse(line: bytes) -> TrainingEvent:
    try:
        return parse_event(line)
    except ProtocolError:
        # Not the line itself, which may be a row of the dataset.
        logger.warning("the child wrote a line of %d bytes that is not an event", len(line))
        raise


def _await_exit(child: Child) -> None:
    """Let a child that has closed its output exit by itself, because its exit code matters."""
    try:
        child.wait(EXIT_GRACE_S)
    except subprocess.TimeoutExpired:
        logger.warning("the child closed its output and did not end")


def _kill(child: Child) -> None:
    """Kill the child's process group, which includes whatever the child has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()
