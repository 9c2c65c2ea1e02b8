"""Copies, links and writes files so that they are on the disk when the function returns."""

import errno
import os
import shutil
from pathlib import Path

from app.core.durable import sync

_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors that mean a hard link is impossible here, so that the file must be copied instead."""


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
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as original, target.open("wb") as copy:
        shutil.copyfileobj(original, copy, 1024 * 1024)
        copy.flush()
        os.fsync(copy.fileno())


def write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())


def sync_directories(root: Path) -> None:
    """Make the names of everything below `root` durable."""
    for directory, _, _ in os.walk(root, topdown=False):
        sync(Path(directory))
