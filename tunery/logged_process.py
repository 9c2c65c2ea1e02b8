"""A program in the background, with its log."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

START_S = 60.0
"""Default limit for the start of a process, in seconds; generous, as the machine may be busy."""

STOP_S = 40.0
"""Default limit for the end of a process, in seconds. A worker saves its running job first."""

LOG_TAIL_LINES = 15

_PR_SET_PDEATHSIG = 1
"""Linux, `prctl(2)`: the signal that a process gets when the thread that started it ends."""
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

_POLL_S = 0.05


class ServiceError(Exception):
    """A process does not run as it should; the message ends with its log."""


def end_with_parent() -> None:
    """In a new process: stop in good order when the process that started it is killed."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class LoggedProcess:
    """A program whose output goes to a log file. It may be started again after it has ended.

    Args:
        command: the program and its arguments.
        log: receives standard output and standard error; every start appends to it.
        cwd: working directory.
        environment: all environment variables.
    """

    def __init__(
        self, command: Sequence[str | Path], *, log: Path, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        self._command = command
        self._log = log
        self._cwd = cwd
        self._environment = environment
        self._log_start = 0
        self._started: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._started is not None and self._started.poll() is None

    def start(self) -> None:
        """Start the program without waiting. Call `wait_for` to wait until it is ready."""
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._started = subprocess.Popen(  # noqa: S603 - the caller's own program
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the caller alone, which stops it
                preexec_fn=end_with_parent,  # noqa: PLW1509 - one call of the system, no locks
            )

    def log(self) -> str:
        """Everything logged so far, by all starts."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def log_tail(self) -> str:
        """The last lines of the log, indented."""
        return "\n".join(f"    {line}" for line in self.log().splitlines()[-LOG_TAIL_LINES:])

    def wait_for(self, pattern: str, *, within_s: float = START_S) -> re.Match[str]:
        """Wait until the log of the last start matches the pattern.

        Raises:
            ServiceError: the process has ended, or the time is up.
        """
        deadline = time.monotonic() + within_s
        while True:
            was_running = self.is_running  # asked first, so that the last words of it are read
            log = self._log.read_bytes()[self._log_start :].decode("utf-8", "replace")
            if match := re.search(pattern, log):
                return match
            if not was_running:
                self.check()
            if time.monotonic() > deadline:
                raise self._error(f"was not ready within {within_s:.0f} s")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Make sure that the process runs.

        Raises:
            ServiceError: it has ended.
        """
        if not self.is_running:
            raise self._error(f"ended with exit code {self._process.returncode}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        self._process.send_signal(number)

    def wait(self, *, within_s: float = STOP_S) -> int:
        """Wait for the end of the process. Returns its exit code.

        Raises:
            ServiceError: it did not end in time, and was killed.
        """
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise self._error(f"did not end within {within_s:.0f} s and was killed") from error

    def stop(self, how: signal.Signals = signal.SIGTERM, *, within_s: float = STOP_S) -> int:
        """Send a signal and wait for the end of the process, as `wait` does."""
        self.send(how)
        return self.wait(within_s=within_s)

    def kill(self) -> None:
        """End the process at once, with all it has started that is still in its group."""
        if self.is_running:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def _process(self) -> "subprocess.Popen[bytes]":
        assert self._started is not None, f"{self._log.stem} was never started"  # noqa: S101
        return self._started

    def _error(self, what: str) -> ServiceError:
        tail = self.log_tail()
        return ServiceError(f"The process {self._log.stem} {what}. Its log ends:\n{tail}")
