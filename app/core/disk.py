"""How full the data directory's file system is, and a reserve for the day on which it is.

A full disk refuses deletion as well: a database must write before it can forget. So the service
takes nothing more while there is still some space, and keeps a ballast file that it can drop.
"""

import errno
import os
from pathlib import Path

from app.core.errors import StorageFullError
from app.core.settings import Settings

_MIB = 1024 * 1024
_TO_OPEN_BYTES = _MIB
_FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(directory: Path) -> int:
    """What an ordinary user can still write below `directory`, which need not exist yet."""
    while not directory.exists():
        directory = directory.parent
    disk = os.statvfs(directory)
    if disk.f_files and not disk.f_favail:  # no inode is left; some file systems do not count them
        return 0
    return disk.f_bavail * disk.f_frsize


def has_room(settings: Settings, more_bytes: int = 0) -> bool:
    """Whether `min_free_bytes` would still be free once `more_bytes` were written."""
    if not settings.min_free_bytes:
        return True
    return free_bytes(settings.data_dir) >= settings.min_free_bytes + more_bytes


def require_room(settings: Settings, more_bytes: int = 0) -> None:
    """Refuse what would fill the disk, while there is still room for what must go on.

    Raises:
        StorageFullError: not `has_room`.
    """
    if has_room(settings, more_bytes):
        return
    free, needed = free_bytes(settings.data_dir), settings.min_free_bytes + more_bytes
    raise StorageFullError(
        f"The service's disk is nearly full: {free // _MIB:,} MiB are free, and this needs "
        f"{-(-needed // _MIB):,} MiB, with the {settings.min_free_bytes // _MIB:,} MiB that stay "
        "free (TUNERY_MIN_FREE_BYTES). Delete files or tuned models that are no longer needed, or "
        "make the disk larger, then send the request again."
    )


def as_storage_full(error: OSError) -> StorageFullError | None:
    """What the caller is told when a write found the disk full; None for any other error."""
    if error.errno not in _FULL:
        return None
    return StorageFullError(
        "The service's disk is full. Nothing was done. Delete files or tuned models that are no "
        "longer needed, or make the disk larger, then send the request again."
    )


class Ballast:
    """A file of allocated, useless bytes: dropped when there must be space at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.data_dir / "ballast"

    @property
    def is_there(self) -> bool:
        """Whether it is, in its full size. One that was being made when its maker died is not."""
        try:
            return self._path.stat().st_size == self._settings.ballast_bytes
        except FileNotFoundError:
            return False

    def release(self) -> bool:
        """Free its bytes. False when there were none to free."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def release_if_full(self) -> bool:
        """Free its bytes if there are no others: not even a database can be opened without any."""
        return free_bytes(self._settings.data_dir) < _TO_OPEN_BYTES and self.release()

    def make_if_room(self) -> bool:
        """Make it, unless that would take what must stay free. Whether there is one now."""
        size = self._settings.ballast_bytes
        if self.is_there:
            return True
        self.release()
        must_stay_free = max(size, self._settings.min_free_bytes)
        if not size or free_bytes(self._settings.data_dir) < size + must_stay_free:
            return False
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False  # another process is making it at this moment
        try:
            os.posix_fallocate(descriptor, 0, size)  # not a hole, which would free nothing
        except OSError as error:
            self.release()
            if error.errno not in _FULL:
                raise
        finally:
            os.close(descriptor)
        return self.is_there
