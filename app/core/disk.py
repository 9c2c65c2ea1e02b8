"""Free space of the data directory, and a reserve for a full disk.

A database must write in order to delete, so a deletion fails on a full disk too. The service
therefore rejects new data before the disk is full. It also keeps a ballast file, which it removes
to make room for a deletion.
"""

import errno
import os
from pathlib import Path

from app.core.errors import StorageFullError
from app.core.settings import Settings

MIB = 1024 * 1024
_TO_OPEN_BYTES = MIB
_FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(directory: Path) -> int:
    """Bytes that an ordinary user can still write below `directory`, which need not exist yet."""
    disk = _find_disk(directory)
    if disk.f_files and not disk.f_favail:  # no inode is left; some file systems do not count them
        return 0
    return disk.f_bavail * disk.f_frsize


def total_bytes(directory: Path) -> int:
    """Size of the disk of `directory`, which need not exist yet."""
    disk = _find_disk(directory)
    return disk.f_blocks * disk.f_frsize


def _find_disk(directory: Path) -> os.statvfs_result:
    while not directory.exists():
        directory = directory.parent
    return os.statvfs(directory)


def has_room(settings: Settings, more_bytes: int = 0) -> bool:
    """Whether `min_free_bytes` would still be free after writing `more_bytes`."""
    if not settings.min_free_bytes:
        return True
    return free_bytes(settings.data_dir) >= settings.min_free_bytes + more_bytes


def require_room(settings: Settings, more_bytes: int = 0) -> None:
    """Reject a write of `more_bytes` that would leave too little free space.

    Raises:
        StorageFullError: less than `min_free_bytes` would be left.
    """
    if has_room(settings, more_bytes):
        return
    free, needed = free_bytes(settings.data_dir), settings.min_free_bytes + more_bytes
    raise StorageFullError(
        f"The service's disk is nearly full: {free // MIB:,} MiB are free, and this needs "
        f"{-(-needed // MIB):,} MiB, including the {settings.min_free_bytes // MIB:,} MiB that "
        f"must stay free (TUNERY_MIN_FREE_BYTES). {how_to_make_room(settings)}, then send the "
        "request again."
    )


def how_to_make_room(settings: Settings) -> str:
    """What helps against a full disk, as a sentence without its full stop."""
    if settings.store_url:  # the disk has only what is on its way to the store
        return "Wait until other uploads are complete, or make the disk larger"
    return "Delete files or tuned models that you no longer need, or make the disk larger"


def as_storage_full(error: OSError) -> StorageFullError | None:
    """Convert the error of a write to a full disk; None for any other error."""
    if error.errno not in _FULL:
        return None
    return StorageFullError(
        "The service's disk is full. Nothing was done. Delete files or tuned models that you no "
        "longer need, or make the disk larger, then send the request again."
    )


class Ballast:
    """A file of allocated but unused bytes, which is deleted when space is needed at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.data_dir / "ballast"

    @property
    def is_there(self) -> bool:
        """Whether the file exists in its full size; a process may have died while creating it."""
        try:
            return self._path.stat().st_size == self._settings.ballast_bytes
        except FileNotFoundError:
            return False

    def release(self) -> bool:
        """Delete the file. False if it did not exist."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def release_if_full(self) -> bool:
        """Delete the file if no other space is left, which even opening a database needs."""
        return free_bytes(self._settings.data_dir) < _TO_OPEN_BYTES and self.release()

    def make_if_room(self) -> bool:
        """Create the file if enough space stays free. Returns whether it exists now."""
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
