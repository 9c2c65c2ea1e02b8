"""What must outlive a power cut: a file's bytes, and the names by which they are found.

A name is kept by its directory, and a new directory is itself a name in the one above it: what
was promised is gone with any name on the way to it that had not reached the disk.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, *, below: Path | None = None) -> None:
    """Make a directory, and those above it, and wait until all their names are on the disk.

    A directory that is there already may have been made a moment ago by a process that was
    killed before it could sync, so its name is not taken on trust either.

    Args:
        below: a directory above it whose own name is on the disk; without it, the way is synced
            as far up as its file system reaches and may be read.
    """
    path.mkdir(parents=True, exist_ok=True)
    real_path, end = path.resolve(), below and below.resolve()
    device = real_path.stat().st_dev
    for directory in real_path.parents:
        if directory.stat().st_dev != device:
            return
        try:
            sync(directory)
        except PermissionError:  # not ours, so it was there before us
            return
        if directory == end:
            return
