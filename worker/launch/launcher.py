"""Runs one attempt outside this process and reports what it says and how it ends."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from app.core.job.training_events import TrainingEvent

LOOK_INTERVAL_S = 0.1
"""At most so long passes between two looks at the order."""


class Order(Enum):
    """What a child is to do."""

    GO_ON = auto()
    SAVE_AND_END = auto()
    """After the present step, however long it takes."""
    END = auto()
    """At once; whatever it has not reported is lost."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended."""

    exit_code: int
    """As the shell gives it, but minus the signal's number when a signal killed it."""
    was_asked: bool
    """Whether it was told to save and end."""
    was_killed: bool
    """Whether it was made to end at once; also when it was never started."""
    log_tail: str
    """The last lines of its standard error."""


class Launcher(Protocol):
    """Local child process today; another machine tomorrow."""

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Begin to load what the first job will need, and return at once.

        Called by an idle worker, again and again, from the thread that calls `run`.

        Args:
            lock: lock file of this machine, held while something loads: one at a time does.
            is_busy: whether the machine trains, which loading would slow down; asked only if there
                is something to load.
        """
        ...

    def run(
        self,
        directory: Path,
        *,
        on_event: Callable[[TrainingEvent], None],
        order: Callable[[], Order],
    ) -> Ending:
        """Train in this job directory, and block until that has ended.

        Whatever `on_event` raises ends the child before it reaches the caller.

        Args:
            on_event: called for everything the child reports, in its order.
            order: asked at least every `LOOK_INTERVAL_S`, from another thread, also while
                `on_event` is busy; it must return at once.

        Raises:
            JobLockedError: another child of the job lives on this machine, and would not end.
        """
        ...
