"""Trains in a child process of this one: `python -m worker.train DIR`."""

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from pydantic import ValidationError

from app.core.training_events import TrainingEvent, parse_event
from worker.launcher import TICK_INTERVAL_S, Ending

logger = logging.getLogger(__name__)

LOG_NAME = "train.log"
LOG_TAIL_LINES = 20
STOP_GRACE_S = 2.0
"""Seconds between asking a child to end and killing it; part of the 5 s that a cancel may take."""

EXIT_GRACE_S = 10.0
"""Seconds a child may take to end once it has closed its output."""

MAX_LINE_BYTES = 1024 * 1024
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
"""What a child gets to see of this process's environment: no address, no secret."""


class LocalLauncher:
    """A `Launcher` on this machine."""

    def __init__(self, module: str = "worker.train") -> None:
        self._module = module

    def run(
        self,
        directory: Path,
        *,
        on_event: Callable[[TrainingEvent], None],
        tick: Callable[[], bool],
    ) -> Ending:
        with (directory / LOG_NAME).open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - our own module, on a directory we made
                [sys.executable, "-m", self._module, str(directory.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_child_environment(),
                start_new_session=True,  # a Ctrl-C in a terminal is for the worker to handle
            )
        output = cast("IO[bytes]", child.stdout)
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read_lines, args=(output, lines), daemon=True)
        reader.start()
        try:
            was_stopped = _relay(lines, child, on_event, tick)
        finally:
            _kill(child)
            reader.join()
            output.close()
        return Ending(child.wait(), was_stopped, _tail(directory / LOG_NAME))


def _relay(
    lines: "queue.SimpleQueue[bytes | None]",
    child: subprocess.Popen[bytes],
    on_event: Callable[[TrainingEvent], None],
    tick: Callable[[], bool],
) -> bool:
    """Hand on what the child says until it ends. Returns whether it was made to end."""
    next_tick = 0.0
    while True:
        if time.monotonic() >= next_tick:
            if tick():
                _stop(child)
                return True
            next_tick = time.monotonic() + TICK_INTERVAL_S
        try:
            line = lines.get(timeout=max(0.0, next_tick - time.monotonic()))
        except queue.Empty:
            if child.poll() is not None:
                _kill(child)  # it has left something behind that holds its output open
            continue
        if line is None:
            _await_exit(child)
            return False
        try:
            event = parse_event(line)
        except ValidationError:
            logger.warning("the child wrote a line that is not an event: %.200r", line)
            continue
        on_event(event)


def _await_exit(child: subprocess.Popen[bytes]) -> None:
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


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child, and whatever it has started: they are a process group of their own."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()


def _child_environment() -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed_on | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _tail(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=LOG_TAIL_LINES)).strip()
