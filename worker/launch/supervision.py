"""What becomes of a child of this machine once it runs, whoever has started it."""

import logging
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol, TypeVar

from pydantic import ValidationError

from app.core.job.training_events import TrainingEvent, parse_event
from app.core.subprocesses import with_import_path
from worker.launch.job_lock import JobLock
from worker.launch.launcher import LOOK_INTERVAL_S, Ending, Order

logger = logging.getLogger(__name__)

LOG_NAME = "train.log"
LOG_TAIL_LINES = 20
LOCK_S = 10.0
"""Seconds that the last attempt's child may take to end after it was killed."""

EXIT_GRACE_S = 10.0
"""Seconds a child may take to end once it has closed its output."""

MAX_LINE_BYTES = 1024 * 1024
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
"""What a child gets to see of this process's environment: no address, no secret."""


class Child(Protocol):
    """A process that leads a group of its own; as much of `subprocess.Popen` as is needed."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        ...

    def terminate(self) -> None:
        """Send it SIGTERM, if it runs."""
        ...


ChildT = TypeVar("ChildT", bound=Child)


def start_locked(
    directory: Path, order: Callable[[], Order], start: Callable[[int, int], ChildT]
) -> ChildT:
    """Start a child that holds the lock of the job for as long as it lives.

    Args:
        directory: the job directory, whose parent is the job's own.
        start: with descriptors that the child inherits, of the lock and for its standard error.

    Raises:
        JobLockedError: another child of the job lives on this machine, and would not end.
    """
    job_lock = JobLock.of(directory)
    lock = job_lock.take(within_s=LOCK_S, is_over=lambda: order() is Order.END)
    try:
        with (directory / LOG_NAME).open("ab") as log:
            child = start(lock, log.fileno())
        try:
            job_lock.name_holder(child.pid)
        except OSError:  # nobody could end it later
            _kill(child)
            raise
    finally:
        os.close(lock)
    return child


def supervise(
    child: Child,
    output: IO[bytes],
    directory: Path,
    *,
    on_event: Callable[[TrainingEvent], None],
    order: Callable[[], Order],
) -> Ending:
    """See a child through: relay what it says, carry out orders, wait for its end.

    Args:
        output: where its events come out; it is closed.
        directory: the job directory, with the log in it.
    """
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(output, lines), daemon=True)
    reader.start()
    supervisor = _Supervisor(child, order)
    supervisor.start()
    try:
        _relay(lines, child, on_event)
    finally:
        supervisor.end()
        _kill(child)
        reader.join()
        output.close()
    return Ending(
        child.wait(),
        was_asked=supervisor.has_asked,
        was_killed=supervisor.has_killed,
        log_tail=_tail(directory / LOG_NAME),
    )


def child_environment() -> dict[str, str]:
    """All that a child, and whatever it is forked from, sees of the environment."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return with_import_path(passed_on) | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


class _Supervisor(threading.Thread):
    """Carries out orders, also while the thread that relays events is busy with one."""

    def __init__(self, child: Child, order: Callable[[], Order]) -> None:
        super().__init__(daemon=True)
        self._child = child
        self._order = order
        self._has_ended = threading.Event()
        self.has_asked = False
        self.has_killed = False

    def run(self) -> None:
        while not self._has_ended.wait(LOOK_INTERVAL_S):
            match self._order():
                case Order.GO_ON:
                    continue
                case Order.SAVE_AND_END:
                    if not self.has_asked:
                        self.has_asked = True
                        self._child.terminate()
                case Order.END:
                    self.has_killed = True
                    _kill(self._child)
                    return

    def end(self) -> None:
        self._has_ended.set()
        self.join()


def _relay(
    lines: "queue.SimpleQueue[bytes | None]",
    child: Child,
    on_event: Callable[[TrainingEvent], None],
) -> None:
    """Hand on what the child says until it ends."""
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            if child.poll() is not None:
                _kill(child)  # it has left something behind that holds its output open
            continue
        if line is None:
            _await_exit(child)
            return
        try:
            event = parse_event(line)
        except ValidationError:
            logger.warning("the child wrote a line that is not an event: %.200r", line)
            continue
        on_event(event)


def _await_exit(child: Child) -> None:
    """Let a child that has said its last word end by itself: its exit code is part of it."""
    try:
        child.wait(EXIT_GRACE_S)
    except subprocess.TimeoutExpired:
        logger.warning("the child closed its output and did not end")


def _read_lines(source: IO[bytes], lines: "queue.SimpleQueue[bytes | None]") -> None:
    """Of a line that is too long, only the beginning, which is no event, is handed on."""
    is_continued = False
    while line := source.readline(MAX_LINE_BYTES):
        if not is_continued:
            lines.put(line)
        is_continued = not line.endswith(b"\n")
    lines.put(None)


def _kill(child: Child) -> None:
    """End the child, and whatever it has started: they are a process group of their own."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()


def _tail(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=LOG_TAIL_LINES)).strip()
