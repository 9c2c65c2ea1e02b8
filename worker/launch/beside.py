"""Checks data and exports beside training, in processes that start without loading libraries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.launch.launcher import Ending, Watcher
from worker.launch.supervision import LocalLauncher
from worker.launch.warm import WarmLauncher


@dataclass(frozen=True, slots=True)
class BesideLauncher:
    """A `Launcher` for all but training. While the machine trains, it stops them most of the time.

    A fork server whose child trains has the libraries in memory. Loading them takes a check some
    seconds of the processor, which are minutes at the share that it gets.
    """

    warm: Sequence[WarmLauncher]
    """Launchers of the workers on this machine."""
    cold: LocalLauncher
    """Starts a check when no worker has a fork server that trains."""
    is_busy: Callable[[], bool]
    """Whether the machine trains a job."""

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Do nothing: the workers load the libraries."""

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        for launcher in self.warm:
            ending = launcher.run_beside(directory, watcher, is_busy=self.is_busy)
            if ending is not None:
                return ending
        return self.cold.run(directory, watcher)
