"""Deletes directories that a training process has filled, which may be hostile.

A directory is opened from the one above it, by its name. So no link is followed, and no path is too
long.
"""

import os
import secrets
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def opened(directory: Path) -> Generator[int]:
    """Open a directory whose own path the service has made. Yields its descriptor."""
    descriptor = os.open(directory, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_below(parent: int, name: str) -> Generator[int]:
    """Open the directory at `name`, a relative path below an open one. Yields its descriptor.

    Raises:
        OSError: a part of the path is a link or no directory.
    """
    with ExitStack() as stack:
        for part in Path(name).parts:
            parent = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            stack.callback(os.close, parent)
        yield parent


def remove_tree(root: Path, name: str) -> None:
    """Delete the directory at `name`, a relative path below `root`, as far as that is possible.

    It may be deeper than a path can be long, so what lies two levels down is lifted up first.
    """
    path = Path(name)
    with (
        suppress(OSError),
        opened(root) as top,
        opened_below(top, str(path.parent)) as parent,
    ):
        with opened_below(parent, path.name) as descriptor:
            while directories := _delete_files(descriptor):
                for directory in directories:
                    _lift_contents(directory, descriptor)
        os.rmdir(path.name, dir_fd=parent)


def _delete_files(directory: int) -> list[str]:
    """Delete everything in a directory but its directories. Returns their names."""
    directories: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return directories


def _lift_contents(name: str, parent: int) -> None:
    """Delete a directory, and move the directories in it to its parent."""
    with opened_below(parent, name) as descriptor:
        for nested in _delete_files(descriptor):
            os.rename(nested, secrets.token_hex(16), src_dir_fd=descriptor, dst_dir_fd=parent)
    os.rmdir(name, dir_fd=parent)
