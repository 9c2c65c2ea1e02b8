"""Makes files survive a power cut: their bytes, and the names by which they are found.

A directory holds the names of what is in it, and its own name is in the directory above it. A file
is lost if any name on the way to it has not reached the disk.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, *, below: Path | None = None) -> None:
    """Make a directory and its parents, and wait until all their names are on the disk.

    This includes directories that exist already, because a process that was killed before it could
    sync may have made them a moment ago.

    Args:
        below: a parent whose own name is on the disk. Without it, all parents on the same file
            system that may be read are synced.
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
