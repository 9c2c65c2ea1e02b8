"""Runs one attempt outside this process and reports what it says and how it ends."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.core.training_events import TrainingEvent

TICK_INTERVAL_S = 0.5
"""At most so long passes between two calls of `tick`."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended."""

    exit_code: int
    """As the shell gives it, but minus the signal's number when a signal killed it."""
    was_stopped: bool
    """Whether it was ended because `tick` asked for it."""
    log_tail: str
    """The last lines of its standard error."""


class Launcher(Protocol):
    """Local child process today; another machine tomorrow."""

    def run(
        self,
        directory: Path,
        *,
        on_event: Callable[[TrainingEvent], None],
        tick: Callable[[], bool],
    ) -> Ending:
        """Train in this job directory, and block until that has ended.

        Whatever `on_event` or `tick` raises stops the child before it reaches the caller.

        Args:
            on_event: called for everything the child reports, in its order.
            tick: called at least every `TICK_INTERVAL_S`; returns whether to stop the child.
        """
        ...
