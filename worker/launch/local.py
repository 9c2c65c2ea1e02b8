"""Trains in a child process of this one: `python -m worker.train DIR`."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from app.core.job.training_events import TrainingEvent
from app.core.subprocesses import python_module
from worker.launch.launcher import Ending, Order
from worker.launch.supervision import child_environment, start_locked, supervise


class LocalLauncher:
    """A `Launcher` on this machine. The job directory's parent is the job's own."""

    def __init__(self, module: str = "worker.train") -> None:
        self._module = module

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Nothing outlives a job here."""

    def run(
        self,
        directory: Path,
        *,
        on_event: Callable[[TrainingEvent], None],
        order: Callable[[], Order],
    ) -> Ending:
        child = self._start(directory, order)
        output = cast("IO[bytes]", child.stdout)
        return supervise(child, output, directory, on_event=on_event, order=order)

    def _start(self, directory: Path, order: Callable[[], Order]) -> "subprocess.Popen[bytes]":
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

        return start_locked(directory, order, start)
