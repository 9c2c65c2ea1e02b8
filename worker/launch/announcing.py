"""Tells each job how its training process is contained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.core.job.child.training_events import Noted
from worker.launch.launcher import Ending, Launcher, Watcher


@dataclass(frozen=True, slots=True)
class AnnouncingLauncher:
    """A `Launcher` that reports an event of its own before those of the training process."""

    launcher: Launcher
    event: Noted

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        self.launcher.preload(lock, is_busy=is_busy)

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        watcher.on_event(self.event)
        return self.launcher.run(directory, watcher)
