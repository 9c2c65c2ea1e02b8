"""So many jobs train at once on this machine, however many workers it has."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from worker.launch.job_lock import try_lock


class TrainingSlots:
    """The right to train, shared by all workers of a machine: one more worker is a stand-by.

    Args:
        directory: for the lock files of this machine.
        count: jobs that may train at once.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self._paths = [directory / f"slot-{number}.lock" for number in range(count)]

    @contextmanager
    def take(self) -> Generator[bool]:
        """Hold a slot while the block runs; whether there was one to take."""
        descriptor = next((fd for path in self._paths if (fd := try_lock(path)) is not None), None)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def is_any_other_taken(self) -> bool:
        """Whether somebody else holds a slot, asked while holding one."""
        found = [try_lock(path) for path in self._paths]
        free = [descriptor for descriptor in found if descriptor is not None]
        for descriptor in free:
            os.close(descriptor)
        return len(free) < len(self._paths) - 1
