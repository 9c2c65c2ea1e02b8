"""Trains in a child process of this one: `python -m worker.train DIR`."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from app.core.job.training_events import TrainingEvent
from app.core.subprocesses import python_module
from worker.launch.launcher import Ending, Signal
from worker.launch.supervision import LOCK_S, child_environment, start_locked, supervise


class LocalLauncher:
    """A `Launcher` on this machine. The job directory's parent belongs to the job alone.

    Args:
        lock_s: how long to wait for the job's previous training process to die, in seconds.
    """

    def __init__(self, module: str = "worker.train", *, lock_s: float = LOCK_S) -> None:
        self._module = module
        self._lock_s = lock_s

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Do nothing: no process outlives a job here."""

    def run(
        self,
        directory: Path,
        *,
        on_event: Callable[[TrainingEvent], None],
        requested_signal: Callable[[], Signal],
    ) -> Ending:
        def start(lock: int, log: int) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(  # noqa: S603 - our own module, on a directory we made
                python_module(self._module, str(directory.resolve())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                pass_fds=[lock],  # held for as long as the child lives
                start_new_session=True,  # a Ctrl-C in a terminal is for the worker to handle
            )

        child = start_locked(directory, requested_signal, start, within_s=self._lock_s)
        output = cast("IO[bytes]", child.stdout)
        return supervise(
            child, output, directory, on_event=on_event, requested_signal=requested_signal
        )
