"""Runs the processes of a service as one: starts them, restarts what dies, stops all together."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from app.core.clock import steady_s
from app.core.command_line.exit_codes import CANNOT_RUN
from app.core.machine.signals import describe_exit
from app.core.machine.subprocesses import python_module, with_import_path
from tunery.logged_process import end_with_parent

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 60.0
STEADY_AFTER_S = 60.0
"""A process that ran for so long has recovered: its next restart waits `FIRST_DELAY_S` again."""

POLL_INTERVAL_S = 0.1


class _Part:
    """One process of the service, and when to start it again."""

    def __init__(self, name: str, module: str, *, steady_after_s: float) -> None:
        self.name = name
        self._module = module
        self._steady_after_s = steady_after_s
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._start_at_s = 0.0
        self._delay_s = FIRST_DELAY_S
        self._is_first = True

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def has_just_begun(self) -> bool:
        """Whether it runs for the first time, and not for long yet."""
        return self._is_first and not self._was_steady

    @property
    def _was_steady(self) -> bool:
        return steady_s() - self._started_s > self._steady_after_s

    def start_if_due(self) -> None:
        now_s = steady_s()
        if self._process is not None or now_s < self._start_at_s:
            return
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                python_module(self._module),
                env=with_import_path(os.environ),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops all
                preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        except OSError as error:  # such as too little memory, which passes
            delay_s = self.plan_restart()
            logger.warning(
                "%s cannot be started: %s; it is tried again in %.0f s", self.name, error, delay_s
            )
        self._started_s = now_s

    def reap(self) -> int | None:
        """Return the exit code if the process has ended since the last call, otherwise None."""
        if self._process is None:
            return None
        exit_code = self._process.poll()
        if exit_code is not None:
            # Processes that it has started, such as the installation of a base model, end too.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process = None
        return exit_code

    def plan_restart(self) -> float:
        """Decide when to start it again. Returns the delay in seconds."""
        self._is_first = False
        if self._was_steady:
            self._delay_s = FIRST_DELAY_S
        delay_s = self._delay_s
        self._start_at_s = steady_s() + delay_s
        self._delay_s = min(2 * delay_s, MAX_DELAY_S)
        return delay_s

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and all other processes of its group."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Supervisor:
    """Keeps the processes of a service running until a signal comes.

    Args:
        modules: the module of each process, by the name that messages use.
        stop_within_s: how long the processes may take to stop before they are killed.
        steady_after_s: a process that ran for so long was set up well, in seconds.
    """

    def __init__(
        self,
        modules: dict[str, str],
        *,
        stop_within_s: float,
        steady_after_s: float = STEADY_AFTER_S,
    ) -> None:
        self._parts = [
            _Part(name, module, steady_after_s=steady_after_s) for name, module in modules.items()
        ]
        self._stop_within_s = stop_within_s
        self._signals = 0

    def run(self) -> int:
        """Return 0 after SIGTERM or Ctrl-C, and 2 if a process cannot run as it is set up.

        That ends the service only soon after the first start of the process: another try would end
        the same way. What ends it later may pass.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._count)
        while not self._signals:
            for part in self._parts:
                part.start_if_due()
                exit_code = part.reap()
                if exit_code == CANNOT_RUN and part.has_just_begun:
                    self._stop()
                    return CANNOT_RUN
                if exit_code is not None:
                    logger.error(
                        "%s ended with %s; it is started again in %.0f s",
                        part.name,
                        describe_exit(exit_code),
                        part.plan_restart(),
                    )
            time.sleep(POLL_INTERVAL_S)
        logger.info("stopping; a running job is saved first. Ctrl-C again to stop at once")
        self._stop()
        return 0

    def _count(self, _signal: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _stop(self) -> None:
        """Tell all processes to stop, again at each further signal, and wait for their end."""
        deadline_s = steady_s() + self._stop_within_s
        sent = 0
        while self._running() and steady_s() < deadline_s:
            if sent < max(1, self._signals):
                sent += 1
                for part in self._parts:
                    part.send(signal.SIGTERM)
            time.sleep(POLL_INTERVAL_S)
        for part in self._running():
            logger.warning("%s did not stop in time and is killed", part.name)
            part.kill()

    def _running(self) -> Sequence[_Part]:
        for part in self._parts:
            part.reap()
        return [part for part in self._parts if part.is_running]
