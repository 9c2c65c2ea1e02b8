"""Stand-ins for what lies across a seam; each passes the conformance suite of that seam."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from app.core.training_events import TrainingEvent
from tests.builders import NOW
from worker.launcher import Ending


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
class FakeLauncher:
    """A `Launcher` whose child is a list of acts; `tick` is called before each of them."""

    acts: Sequence[Act] = ()
    exit_code: int = 0
    log_tail: str = ""
    directories: list[Path] = field(default_factory=list[Path])
    """The job directories it was given."""

    def run(
        self,
        directory: Path,
        *,
        on_event: Callable[[TrainingEvent], None],
        tick: Callable[[], bool],
    ) -> Ending:
        self.directories.append(directory)
        for act in self.acts:
            must_stop = tick()
            while isinstance(act, Waiting) and not must_stop:
                must_stop = tick()
            if must_stop:
                return Ending(-15, was_stopped=True, log_tail=self.log_tail)
            event = act(directory) if callable(act) else act
            if event is not None and not isinstance(event, Waiting):
                on_event(event)
        return Ending(self.exit_code, was_stopped=False, log_tail=self.log_tail)
