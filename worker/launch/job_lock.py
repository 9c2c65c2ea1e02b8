"""Locks that the kernel lets go of when their holder dies, however it dies. No clock is involved.

They hold on one machine: between machines only the fence of the database does.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from worker.identity import start_ticks

_RETRY_S = 0.05


class JobLockedError(Exception):
    """Another training process of the job is still alive on this machine, and would not end."""


class JobLock:
    """Held by the training process of a job, so that it never has two at once on a machine.

    The file says who holds it: a worker that was suspended has a child that trains on, and
    whoever takes the job over ends that child.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, job_directory: Path) -> Self:
        """The lock of the job that this directory of one of its attempts belongs to.

        Outside of the directory of the job, which every attempt makes anew.
        """
        return cls(job_directory.parent.with_suffix(".lock"))

    def take(self, *, within_s: float, is_over: Callable[[], bool] = lambda: False) -> int:
        """A descriptor that holds the lock, for the child to inherit; the caller closes its own.

        Args:
            is_over: whether the caller has lost the job meanwhile: then the present holder is the
                child of its next attempt, and is left alone.

        Raises:
            JobLockedError: the present holder did not end in this time, or is left alone.
        """
        deadline_s = time.monotonic() + within_s
        while (descriptor := self._try()) is None:
            if is_over():
                raise JobLockedError(f"{self._path.name} is the next attempt's")
            self._end_holder()
            if time.monotonic() > deadline_s:
                raise JobLockedError(f"{self._path.name} is held by another process")
            time.sleep(_RETRY_S)
        return descriptor

    def name_holder(self, pid: int) -> None:
        """Write down which process, a leader of its group, holds the lock from now on."""
        self._path.write_text(f"{pid} {start_ticks(pid)}")

    def remove_if_free(self) -> None:
        """Delete the file, unless somebody holds the lock."""
        if self._path.exists() and (descriptor := self._try()) is not None:
            self._path.unlink(missing_ok=True)
            os.close(descriptor)

    def _try(self) -> int | None:
        descriptor = try_lock(self._path)
        if descriptor is None:
            return None
        try:
            is_current = self._path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            is_current = False
        if is_current:
            return descriptor
        os.close(descriptor)  # of a file that was deleted meanwhile: a lock on nothing
        return None

    def _end_holder(self) -> None:
        try:
            pid, ticks = map(int, self._path.read_text().split())
        except (OSError, ValueError):
            return  # not written down yet
        if start_ticks(pid) == ticks:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                return


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock on a file, which is made; None when another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor
