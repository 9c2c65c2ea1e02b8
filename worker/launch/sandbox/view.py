"""What the process sees of the file system, where it has mounts of its own."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from app.core.machine.linux import mount

_READ_ONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_BIND_ALL = 0x1000 | 0x4000
_ALL_PRIVATE = 0x4000 | 0x40000
_EMPTY = "mode=0755,size=1m"
_OPEN = 0o022
"""Umask with which another user may enter the directories on the way to what is needed."""


def hide_all_but(needed: Iterable[Path], hidden: Path, *, from_others: bool) -> None:
    """Hide a directory, except what is needed in it, which stays under its name.

    The process must have mounts of its own.

    Args:
        from_others: whether to do the same with every directory that is closed to other users, so
            that another user reaches what is needed in it.

    Raises:
        OSError: it could not be done.
    """
    mount("none", "/", flags=_ALL_PRIVATE)
    with suppress(OSError):  # a container may hide parts of /proc, and then refuses a new one
        mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    names = [name for path in needed if path.exists() for name in (path, path.resolve())]
    covers = [hidden.resolve()]
    if from_others:
        covers += [closed for name in names if (closed := _find_closed_parent(name)) is not None]
    umask = os.umask(_OPEN)
    for cover in _outermost(covers):
        _cover(cover, _outermost(name for name in names if cover in name.parents))
    os.umask(umask)


def _find_closed_parent(path: Path) -> Path | None:
    """The outermost directory on the way to `path` that other users may not enter."""
    return next(
        (parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None
    )


def _cover(cover: Path, revealed: Sequence[Path]) -> None:
    """Put an empty directory over this one, with only some things of the old one in it."""
    held = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in revealed}
    mount("none", str(cover), "tmpfs", _NOSUID | _NODEV, _EMPTY)
    for path, descriptor in held.items():
        source = f"/proc/self/fd/{descriptor}"
        if Path(source).is_dir():
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        mount(source, str(path), flags=_BIND_ALL)
        os.close(descriptor)
    mount("none", str(cover), flags=_REMOUNT | _READ_ONLY | _NOSUID | _NODEV)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Leave out what lies below another path."""
    unique = set(paths)
    return sorted(path for path in unique if unique.isdisjoint(path.parents))
