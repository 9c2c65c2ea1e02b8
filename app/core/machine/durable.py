"""Writes that survive a power cut: the bytes of files, and the names of files and directories.

A directory stores the names of its files, and its own name is stored in its parent. A file is lost
if any name on the path to it has not reached the disk.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors that mean a hard link is impossible here, so that the file must be copied instead."""


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, *, below: Path | None = None) -> None:
    """Create a directory and its parents, and wait until all their names are on disk.

    An existing directory is synced too: the process that created it may have been killed before it
    could sync.

    Args:
        below: a parent directory whose own name is on disk. Without it, all readable parents in
            the same file system are synced.
    """
    path.mkdir(parents=True, exist_ok=True)
    real_path, end = path.resolve(), below and below.resolve()
    device = real_path.stat().st_dev
    for directory in real_path.parents:
        if directory.stat().st_dev != device:
            return
        try:
            sync(directory)
        except PermissionError:  # another user's directory, so it is older than this process
            return
        if directory == end:
            return


def link_or_copy(source: Path, target: Path, *, may_link: bool) -> None:
    """Give a file that is never changed a second path, by a hard link or by a copy.

    Raises:
        FileNotFoundError: there is no `source`.
    """
    if not (may_link and try_link(source, target)):
        copy_file(source, target)


def try_link(source: Path, target: Path) -> bool:
    """Give a file a second name by a hard link. False if that is impossible there.

    Raises:
        FileNotFoundError: there is no `source`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file, durably.

    Raises:
        FileNotFoundError: there is no `source`.
    """
    with source.open("rb") as original:
        copy_stream(original, target)


def copy_stream(source: BinaryIO, target: Path) -> None:
    """Write the rest of an open file to another file, durably."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1024 * 1024)
        copy.flush()
        os.fsync(copy.fileno())


def write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())


def replace_privately(path: Path, content: bytes) -> None:
    """Give a file new content and mode 0600, durably. Readers see the old content or the new.

    Only one process may do this to a path at a time.
    """
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)  # from a process that was killed
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    scratch.rename(path)
    sync(path.parent)


def sync_directories(root: Path) -> None:
    """Make the names of everything below `root` durable."""
    for directory, _, _ in os.walk(root, topdown=False):
        sync(Path(directory))
