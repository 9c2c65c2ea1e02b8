"""Writes that survive a power cut: the bytes of files, and the names of files and directories.

A directory stores the names of its files, and its own name is stored in its parent. A file is lost
if any name on the path to it has not reached the disk.
"""

import os
from pathlib import Path


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
