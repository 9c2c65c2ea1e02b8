"""Runs one attempt outside this process, and reports its events and how it ends."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from app.core.job.child.training_events import TrainingEvent

SIGNAL_POLL_INTERVAL_S = 0.1
"""Maximum interval at which a launcher asks for the requested signal."""


class Signal(Enum):
    """What a training process is asked to do."""

    CONTINUE = auto()
    SAVE_AND_STOP = auto()
    """Finish the current step, however long it takes, save the state, and exit."""
    KILL = auto()
    """Die at once. Whatever the process has not reported is lost."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a training process ended."""

    exit_code: int
    """Exit code; minus the number of the signal if a signal killed the process."""
    was_asked: bool
    """Whether it was asked to save and stop."""
    was_killed: bool
    """Whether it was killed on request, or never started because of one."""
    log_tail: str
    """The last lines of its standard error."""
    processor_s: float = 0.0
    """Processor time that it took beside training, in seconds. Training itself is not measured."""


class Watcher(Protocol):
    """Follows a training process."""

    def on_event(self, event: TrainingEvent) -> None:
        """Take an event. They come in the order in which the process reports them."""
        ...

    def requested_signal(self) -> Signal:
        """Return what the process is to do, at once.

        Polled at least every `SIGNAL_POLL_INTERVAL_S`, from another thread than `on_event`, also
        while that is busy.
        """
        ...


class Launcher(Protocol):
    """Starts training processes: local children today, another machine tomorrow."""

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        """Begin to load what the first job will need, and return at once.

        An idle worker calls this repeatedly, from the thread that calls `run`.

        Args:
            lock: lock file of this machine, held while loading, so that one worker loads at a time.
            is_busy: whether a job trains on the machine; loading would slow it down. Called only
                if there is something to load.
        """
        ...

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        """Train in this job directory, and block until the training process has ended.

        If `watcher.on_event` raises, the process is killed before the exception reaches the caller.

        Raises:
            JobLockedError: another process of the job lives on this machine and does not end.
            ProtocolError: the process has written something that is not an event. It is killed.
        """
        ...
