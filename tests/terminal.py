"""A program in a terminal of its own: what it writes is seen, and keys can be pressed."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

CTRL_C = b"\x03"
COLUMNS = 80
_LINES = 24
_ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")


class InTerminal:
    """A running program whose terminal has 80 columns. A context manager, which ends it.

    Args:
        command: the program and its arguments.
        cwd: working directory.
        environment: all environment variables.
    """

    def __init__(
        self, command: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", _LINES, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - for Ctrl-C
        )
        os.close(slave)
        self.output = ""
        """Everything it has written, with escape sequences."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """What it has written, without escape sequences."""
        return _ESCAPE_SEQUENCE.sub("", self.output)

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, pattern: str, *, within_s: float) -> re.Match[str]:
        """Wait until what it has written matches."""
        deadline = time.monotonic() + within_s
        while not (match := re.search(pattern, self.text)):
            assert self._read(deadline), f"{pattern!r} did not come:\n{self.text}"
        return match

    def wait(self, *, within_s: float) -> int:
        """Wait for its end. Returns the exit code."""
        deadline = time.monotonic() + within_s
        while self._read(deadline):
            pass
        return self._process.wait(max(1.0, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Read what there is. False at the end of the output, or of the time."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            chunk = os.read(self._master, 65536) if ready else b""
        except OSError:  # the program has closed its terminal
            return False
        self.output += chunk.decode("utf-8", "replace")
        return bool(chunk)


def _take_terminal() -> None:
    """Let Ctrl-C reach this process, even if it is ignored by whoever runs the tests."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
