"""File locks that the kernel releases when their holder dies, however it dies.

They work on one machine. Between machines, only the fence in the database protects a job.
"""

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

_RETRY_S = 0.05
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_NAME = 100
"""Maximum number of characters that are read of what names the holder of a lock."""
_START_TICKS = 19
"""Index among the fields of `/proc/PID/stat` that follow the command's name: `proc_pid_stat(5)`."""


class JobLockedError(Exception):
    """Another training process of the job is still alive on this machine and does not end."""


class _NoLockFileError(OSError):
    """There is something else in the place of a lock file."""


class JobLock:
    """Lock of a job, held by its training process, so that a machine never runs two of them.

    The file names its holder. The training process of a suspended worker keeps running, so the
    worker that takes the job over kills it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, job_directory: Path) -> Self:
        """Return the lock of the job that a job directory belongs to.

        The lock file lies beside the directory of the job, because attempts delete that directory.
        """
        return cls(job_directory.parent.with_suffix(".lock"))

    def take(self, *, within_s: float, is_over: Callable[[], bool] = lambda: False) -> int:
        """Take the lock, killing its holder. Returns a descriptor for the child to inherit.

        The caller closes its own copy of the descriptor.

        Args:
            within_s: how long the holder may take to die, in seconds.
            is_over: whether the caller has lost the job meanwhile. The holder then belongs to the
                job's next attempt and is left alone.

        Raises:
            JobLockedError: the holder did not die in time, or is left alone.
        """
        deadline_s = time.monotonic() + within_s
        while (descriptor := self._try()) is None:
            if is_over():
                raise JobLockedError(f"{self._path.name} belongs to the next attempt")
            self._kill_holder()
            if time.monotonic() > deadline_s:
                raise JobLockedError(f"{self._path.name} is held by another process")
            time.sleep(_RETRY_S)
        return descriptor

    def name_holder(self, pid: int) -> None:
        """Write down the process, a leader of its group, that holds the lock from now on."""
        with os.fdopen(_open(self._path, os.O_WRONLY | os.O_TRUNC), "w") as file:
            file.write(f"{pid} {start_ticks(pid)}")

    def remove_if_free(self, *, within_s: float = 0.0) -> None:
        """Delete the file, unless a process holds the lock.

        Args:
            within_s: how long to wait for a process that has been killed and still holds the lock.
        """
        deadline_s = time.monotonic() + within_s
        while os.path.lexists(self._path):
            if (descriptor := self._try()) is not None:
                self._path.unlink(missing_ok=True)
                os.close(descriptor)
                return
            if time.monotonic() > deadline_s:
                return
            time.sleep(_RETRY_S)

    def _try(self) -> int | None:
        descriptor = try_lock(self._path)
        if descriptor is None:
            return None
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # the file was deleted meanwhile, so this locks nothing
        return None

    def _kill_holder(self) -> None:
        try:
            with os.fdopen(_open(self._path, os.O_RDONLY)) as file:
                pid, ticks = map(int, file.read(_MAX_NAME).split())
        except (OSError, ValueError):
            return  # not written down yet
        if start_ticks(pid) == ticks:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


class TrainingSlots:
    """Limits how many jobs train at once on a machine, over all its workers.

    A worker that gets no slot stands by until one is free.

    Args:
        directory: directory for the lock files of this machine.
        count: number of jobs that may train at once.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self._paths = [directory / f"slot-{number}.lock" for number in range(count)]

    @contextmanager
    def take(self) -> Generator[bool]:
        """Hold a slot while the block runs. Yields whether there was one to take."""
        descriptor = self._try_all()
        if descriptor is None:
            time.sleep(_RETRY_S)  # whoever looks whether a slot is taken locks it for a moment
            descriptor = self._try_all()
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def is_any_taken(self) -> bool:
        """Whether a worker holds a slot."""
        # Locks that are shared do not hide behind each other, however many processes look.
        tried = [try_lock(path, how=fcntl.LOCK_SH) for path in self._paths]
        free = [descriptor for descriptor in tried if descriptor is not None]
        for descriptor in free:
            os.close(descriptor)
        return len(free) < len(self._paths)

    def _try_all(self) -> int | None:
        return next((fd for path in self._paths if (fd := try_lock(path)) is not None), None)


def try_lock(path: Path, *, how: int = fcntl.LOCK_EX) -> int | None:
    """Lock a file, which is created. Returns a descriptor, or None if the lock is taken.

    A training process inherits the descriptor of its job's lock. It cannot write to the file, which
    names the process that the next attempt would kill.

    Args:
        path: the file.
        how: `LOCK_EX`, or `LOCK_SH` for a lock that others who share it can hold, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _open(path, os.O_RDONLY | os.O_CREAT)
    except _NoLockFileError:
        path.unlink(missing_ok=True)  # no worker has made it; the next try makes the file
        return None
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _open(path: Path, flags: int) -> int:
    """Open a lock file, but nothing that a training process may have put in its place.

    Raises:
        _NoLockFileError: it is a link, a pipe or a device.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait for its other end
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _NoLockFileError(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NoLockFileError(path)
    return descriptor


def start_ticks(pid: int) -> int | None:
    """When the kernel started the process, in clock ticks since boot; None if it does not run.

    Where there is no /proc, 0 stands for any process that runs.
    """
    if not BOOT_ID.exists():
        return 0 if _exists(pid) else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name of a command may hold spaces and brackets
    return None if fields[0] == "Z" else int(fields[_START_TICKS])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it runs, as another user
    return True
