"""Starts attempts at jobs somewhere, and finds out whether they still run."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeVar

from app.core.db.repositories.leases import Lease
from worker.launch.launcher import Signal

HandleT = TypeVar("HandleT")


class Health(Enum):
    """What is known of an attempt that was launched."""

    RUNNING = auto()
    """It runs or is about to."""
    GONE = auto()
    """It is certain that nothing of it runs any more, or ever will."""
    UNKNOWN = auto()
    """Nobody could be asked. Only the lease decides then whether the job is another attempt's."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt runs, and what is reserved for it there."""

    threads: int
    memory_bytes: int
    """Estimated memory. Reserved, not enforced."""
    gpus: int = 0
    node: str = ""
    """Id of the node. Empty for this machine."""


class AlreadyLaunchedError(Exception):
    """The attempt was launched before, by this process or by another one."""


class AttemptLauncher(Protocol[HandleT]):
    """Starts attempts. It knows nothing of how they fare: the database does."""

    def launch(self, lease: Lease, place: Place) -> HandleT:
        """Start the attempt, and return without waiting until it runs.

        Raises:
            AlreadyLaunchedError: there is an attempt of this job and number.
        """
        ...

    def signal(self, handle: HandleT, signal: Signal) -> None:
        """Ask the attempt to save and stop, or kill it. Nothing happens if it has ended.

        Its job is queued again then, after a kill at the latest when the lease has run out. What a
        user wants of a job goes through the database instead.
        """
        ...

    def check(self, handle: HandleT) -> Health:
        """Find out whether the attempt runs, within seconds."""
        ...

    def release(self, handle: HandleT) -> None:
        """Kill the attempt if it still runs or waits, and free what was reserved for it."""
        ...
