"""`python -m tests.powercut.amnesia_fs IMAGE MOUNT_POINT CACHE`: a forgetful disk, mounted.

Two ways to cut its power. SIGKILL: everything that was not synced is gone. A line with a number on
standard input: the number is the seed by which some of what was not synced, sector by sector and
name by name, is kept all the same; then it kills itself.

CACHE says how writes come here: `back`, gathered by the kernel until it is told to sync, as before
a real disk; or `through`, each at once, so that there is more for chance to choose from. Pages are
cached for reading in both, so that SQLite can map its `-shm` file; with `direct_io` it could not.
"""

import errno
import os
import random
import signal
import stat
import sys
import threading
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("FUSE_LIBRARY_PATH", "libfuse3.so.3")  # or it is looked for, slowly

from mfusepy import FUSE, FuseOSError, Operations, overrides

from tests.powercut.disk import ROOT, Change, Rebind, Resize, Write
from tests.powercut.image import Image

_CAP_WRITEBACK_CACHE = 1 << 16
_SECTOR_BYTES = 512


class AmnesiaFs(Operations):
    """Paths and handles to the nodes of a disk; a handle is a node's number."""

    use_ns = True

    def __init__(self, image: Image, *, writes_back: bool) -> None:
        self._image = image
        self._writes_back = writes_back
        self._disk = image.load()
        self._times_ns: dict[int, int] = {}
        self._lock = threading.Lock()

    def cut(self, rng: random.Random) -> None:
        """Keep some of what was not synced, and end this process at once."""
        with self._lock:
            for number, node in self._disk.seen.items():
                luck = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
                kept = [part for part in _split(node.pending) if rng.random() < luck]
                self._image.append(number, node, kept)
            _end()

    @overrides(Operations)
    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        if self._writes_back:
            conn_info.want |= _CAP_WRITEBACK_CACHE

    @overrides(Operations)
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        number = fh or self._find(path)
        node = self._disk.seen[number]
        time_ns = self._times_ns.get(number, 0)
        kind = stat.S_IFREG | 0o644 if node.names is None else stat.S_IFDIR | 0o755
        return {
            "st_ino": number,
            "st_mode": kind,
            "st_nlink": 1 if node.names is None else 2,
            "st_size": len(node.content),
            "st_mtime": time_ns,
            "st_ctime": time_ns,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
        }

    @overrides(Operations)
    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        names = {".": fh, "..": fh} | (self._disk.seen[fh].names or {})
        return [(name, {"st_ino": number}, 0) for name, number in names.items()]

    @overrides(Operations)
    def open(self, path: str, flags: int) -> int:
        return self._find(path)

    @overrides(Operations)
    def opendir(self, path: str) -> int:
        return self._find(path)

    @overrides(Operations)
    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self._make(path, is_directory=False)

    @overrides(Operations)
    def mkdir(self, path: str, mode: int) -> int:
        self._make(path, is_directory=True)
        return 0

    @overrides(Operations)
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(memoryview(self._disk.seen[fh].content)[offset : offset + size])

    @overrides(Operations)
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._change(fh, Write(offset, data))
        return len(data)

    @overrides(Operations)
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._change(fh or self._find(path), Resize(length))
        return 0

    @overrides(Operations)
    def rename(self, old: str, new: str) -> int:
        (old_parent, old_name), (new_parent, new_name) = self._place(old), self._place(new)
        number = self._find(old)
        if old_parent == new_parent:
            self._change(old_parent, Rebind({old_name: None, new_name: number}))
        else:
            self._change(new_parent, Rebind({new_name: number}))
            self._change(old_parent, Rebind({old_name: None}))
        return 0

    @overrides(Operations)
    def unlink(self, path: str) -> int:
        parent, name = self._place(path)
        self._change(parent, Rebind({name: None}))
        return 0

    @overrides(Operations)
    def rmdir(self, path: str) -> int:
        if self._disk.seen[self._find(path)].names:
            raise FuseOSError(errno.ENOTEMPTY)
        return self.unlink(path)

    @overrides(Operations)
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        with self._lock:
            self._image.append(fh, self._disk.seen[fh], self._disk.sync(fh))
        return 0

    @overrides(Operations)
    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return self.fsync(path, datasync, fh)

    @overrides(Operations)
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        return 0

    @overrides(Operations)
    def chmod(self, path: str, mode: int) -> int:
        return 0

    @overrides(Operations)
    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def _find(self, path: str) -> int:
        number = ROOT
        for name in Path(path).parts[1:]:
            try:
                number = (self._disk.seen[number].names or {})[name]
            except KeyError:
                raise FuseOSError(errno.ENOENT) from None
        return number

    def _place(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        return self._find(parent or "/"), name

    def _make(self, path: str, *, is_directory: bool) -> int:
        parent, name = self._place(path)
        with self._lock:
            number = self._disk.add(is_directory=is_directory)
            self._image.append(number, self._disk.seen[number], [])
        self._change(parent, Rebind({name: number}))
        return number

    def _change(self, number: int, change: Change) -> None:
        with self._lock:
            self._disk.change(number, change)
            self._times_ns[number] = time.time_ns()


def _split(changes: Iterable[Change]) -> Generator[Change]:
    """The parts that a disk may have written one without the other."""
    for change in changes:
        if not isinstance(change, Write):
            yield change
            continue
        for start in range(0, len(change.data), _SECTOR_BYTES):
            yield Write(change.offset + start, change.data[start : start + _SECTOR_BYTES])


def _obey(file_system: AmnesiaFs) -> None:
    for line in sys.stdin:
        file_system.cut(random.Random(int(line)))  # noqa: S311 - chance, not secrecy
    _end()  # whoever started it is gone


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _, image_path, mount_point, cache = sys.argv
    amnesia_fs = AmnesiaFs(Image(Path(image_path)), writes_back=cache == "back")
    threading.Thread(target=_obey, args=(amnesia_fs,), daemon=True).start()
    FUSE(amnesia_fs, mount_point, foreground=True, nothreads=True, use_ino=True)
