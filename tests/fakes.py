"""Stand-ins for what lies across a seam; each passes the conformance suite of that seam."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from app.core.job.child.training_events import TrainingEvent
from tests.builders import NOW
from worker.launch.launcher import Ending, Signal, Watcher

_POLL_S = 0.01


@dataclass
class FrozenClock:
    """A wall clock that only moves when it is told to."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


class Waiting:
    """An act of a fake child: go on for ever, until it is stopped."""


Act = TrainingEvent | Callable[[Path], TrainingEvent | None] | Waiting
"""What a fake child does next: report something, do something in its job directory first, wait."""


@dataclass
class Watch:
    """A `Watcher` of two functions."""

    on_event: Callable[[TrainingEvent], None]
    requested_signal: Callable[[], Signal]


@dataclass
class FakeLauncher:
    """A `Launcher` whose child is a list of acts; it polls the requested signal before each."""

    acts: Sequence[Act] = ()
    exit_code: int = 0
    log_tail: str = ""
    processor_s: float = 0.0
    directories: list[Path] = field(default_factory=list[Path])
    """The job directories it was given."""

    has_preloaded: bool = False

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        self.has_preloaded = lock.parent.is_dir() and not is_busy()

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        self.directories.append(directory)
        for act in self.acts:
            requested = watcher.requested_signal()
            while isinstance(act, Waiting) and requested is Signal.CONTINUE:
                time.sleep(_POLL_S)
                requested = watcher.requested_signal()
            if requested is Signal.KILL:
                return Ending(-9, was_asked=False, was_killed=True, log_tail=self.log_tail)
            if requested is Signal.SAVE_AND_STOP:
                return Ending(-15, was_asked=True, was_killed=False, log_tail=self.log_tail)
            event = act(directory) if callable(act) else act
            if event is not None and not isinstance(event, Waiting):
                watcher.on_event(event)
        ending = Ending(self.exit_code, was_asked=False, was_killed=False, log_tail=self.log_tail)
        return replace(ending, processor_s=self.processor_s)
