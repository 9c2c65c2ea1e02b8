"""Keeps a sampler running: makes its socket, and starts the process that answers.

The keeper reads nothing that is untrusted but the log of that process, and loads no libraries. It
keeps the socket open, so a request that comes between two processes waits for the next one.
"""

import logging
import os
import select
import socket
from contextlib import suppress
from functools import partial

from app.core.base_models import MODELS_NAME
from app.core.clock import steady_s
from app.core.machine.signals import describe_exit
from app.core.sampling.messages import MAX_SILENCE_S
from app.core.settings import Settings
from worker.launch.locks import TrainingSlots, try_lock
from worker.launch.sandbox.grants import open_to_all
from worker.launch.sandbox.sandbox import make_sandbox
from worker.sampling.child import MODULE, Child
from worker.sampling.private_socket import listening_in

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 30.0
STEADY_AFTER_S = 60.0
"""A process that ran for so long has recovered: the next one starts after `FIRST_DELAY_S` again."""

LOOK_S = 0.25
"""Interval at which the keeper looks whether a job trains, in seconds."""

_CONFIRM_S = 0.03
_CONFIRMATIONS = 2
"""How often a taken slot is looked at again. An idle worker holds its slot for a moment, too,
whenever it asks for a job."""


class Keeper:
    """Keeps one process running until told to stop.

    Args:
        settings: the settings of the service.
        stops: descriptor that can be read once the keeper is to stop.
        module: what the process runs.
        silence_s: time after which the process is killed if it does not say that it makes progress,
            in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stops: int,
        module: str = MODULE,
        silence_s: float = MAX_SILENCE_S,
    ) -> None:
        self._settings = settings
        self._stops = stops
        self._start_child = partial(Child.started, module=module, silence_s=silence_s)
        self._slots = TrainingSlots(settings.workers_dir, settings.concurrency)
        self._models = settings.data_dir / MODELS_NAME
        self._seen_models: tuple[int, int] | None = None
        self._sandbox = make_sandbox(
            settings.sandbox,
            data_dir=settings.data_dir,
            locks_dir=settings.workers_dir,
            threads=settings.resolved_sampling_threads,
        )

    def run(self) -> None:
        """Run until told to stop.

        A second sampler on the machine stands by until the first one ends.
        """
        lock = self._await_lock()
        if lock is None:
            return
        try:
            with listening_in(self._settings.sampler_dir) as listener:
                self._keep_running(listener)
        finally:
            os.close(lock)

    def _await_lock(self) -> int | None:
        path = self._settings.sampler_dir / "lock"
        is_waiting = False
        while (lock := try_lock(path)) is None:
            if not is_waiting:
                logger.warning("another sampler runs on this machine; this one stands by")
                is_waiting = True
            if self._is_told_to_stop(within_s=1.0):
                return None
        return lock

    def _keep_running(self, listener: socket.socket) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            began_s = steady_s()
            problem = self._run_child(listener)
            if problem is None:
                return
            if steady_s() - began_s > STEADY_AFTER_S:
                delay_s = FIRST_DELAY_S
            logger.error("%s; another one starts in %.1f s", problem, delay_s)
            if self._is_told_to_stop(within_s=delay_s):
                return
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    def _run_child(self, listener: socket.socket) -> str | None:
        """Run one process until it ends. Returns what has gone wrong; None if the keeper stops."""
        try:
            exit_code = self._watch_child(listener)
        except OSError as error:  # such as a full disk, which passes
            return f"the process that samples cannot run: {error}"
        if exit_code is None:
            return None
        return f"the process that samples ended with {describe_exit(exit_code)}"

    def _watch_child(self, listener: socket.socket) -> int | None:
        """Run one process until it ends. Returns its exit code; None if the keeper is to stop."""
        self._open_models()
        with self._start_child(self._settings, self._sandbox, listener) as child:
            trains: bool | None = None
            while True:
                if trains is not (now := self._is_training()):
                    child.tell(trains=now)
                    trains = now
                self._open_models()
                ready, _, _ = select.select([self._stops, child.output], [], [], LOOK_S)
                if self._stops in ready:
                    return None
                if child.output in ready and not child.relay():
                    return child.exit_code()
                if child.hangs():
                    logger.error("the process that samples hangs, so it is killed")
                    return child.kill()

    def _is_training(self) -> bool:
        """Whether a job trains on this machine."""
        if not self._slots.is_any_taken():
            return False
        for _ in range(_CONFIRMATIONS):
            select.select([], [], [], _CONFIRM_S)
            if not self._slots.is_any_taken():
                return False
        return True

    def _open_models(self) -> None:
        """Let the process, which may be another user, read base models that were just installed."""
        if os.geteuid() != 0:
            return  # it is the same user
        with suppress(OSError):  # one that is being removed
            stat = self._models.stat()
            seen = (stat.st_mtime_ns, stat.st_mode)
            if seen != self._seen_models:
                for path in (self._models, *self._models.iterdir()):
                    open_to_all(path)
                self._seen_models = (stat.st_mtime_ns, self._models.stat().st_mode)

    def _is_told_to_stop(self, *, within_s: float) -> bool:
        ready, _, _ = select.select([self._stops], [], [], within_s)
        return bool(ready)
