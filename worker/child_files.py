"""Opens what a training child has made. The child may be hostile, and may change it meanwhile.

Directories are walked one name at a time without following a link, and only regular files with a
single name are opened. So no name leads out of the job directory, and no pipe keeps the worker
waiting.
"""

import errno
import os
import stat
from collections.abc import Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Self

from app.core.job.artifacts import ARTIFACT_NAMES
from app.core.manifest import ManifestError
from app.core.storage.trees import opened, opened_below

CHUNK_BYTES = 1024 * 1024

_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_CAUSED_BY_CHILD = (
    errno.EACCES,
    errno.EAGAIN,
    errno.ELOOP,
    errno.ENODEV,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
)
"""Errors of opening a link, a socket, a device, a leased file, or something that is not there."""


class ChildDirectory:
    """A directory that a training child has made, held open.

    Its methods raise ManifestError for whatever a child must not make.
    """

    def __init__(self, descriptor: int, name: str, allowed: Collection[str]) -> None:
        self._descriptor = descriptor
        self._name = name
        self._allowed = allowed

    @classmethod
    @contextmanager
    def open(
        cls, root: Path, name: str, allowed: Collection[str] = ARTIFACT_NAMES
    ) -> Generator[Self]:
        """Open the directory at `name`, a relative path, below `root`.

        Args:
            root: a directory of ours.
            name: a relative path.
            allowed: names that its files may have.

        Raises:
            ManifestError: a part of the path is a link or no directory.
        """
        with opened(root) as job_directory, ExitStack() as stack:
            with _blaming_child(f"{name} is a link or no directory"):
                descriptor = stack.enter_context(opened_below(job_directory, name))
            yield cls(descriptor, name, allowed)

    def list_files(self, *, max_bytes: int) -> list[str]:
        """Return the names of the files, in order. Each is one that is allowed.

        Args:
            max_bytes: how large all files may be together.
        """
        with os.scandir(self._descriptor) as entries:
            names = [entry.name for entry in islice(entries, len(self._allowed) + 1)]
        for name in names:
            if name not in self._allowed:
                raise ManifestError(f"{self._name} has a file that does not belong: {name[:80]!a}")
        left_bytes = max_bytes
        for name in names:
            with self._open(name) as descriptor:
                left_bytes -= os.fstat(descriptor).st_size
        if left_bytes < 0:
            raise ManifestError(f"{self._name} is larger than {max_bytes:,} bytes")
        return sorted(names)

    def read(self, name: str, *, max_bytes: int) -> Iterator[bytes]:
        """Yield the bytes of a file, which must not be more than `max_bytes`."""
        with self._open(name) as descriptor:
            while chunk := os.read(descriptor, CHUNK_BYTES):
                max_bytes -= len(chunk)
                if max_bytes < 0:
                    raise ManifestError(f"{self._name}: {name} is too large")
                yield chunk

    @contextmanager
    def _open(self, name: str) -> Generator[int]:
        with _blaming_child(f"{self._name}: {name} cannot be opened"):
            descriptor = os.open(name, _FILE, dir_fd=self._descriptor)
        try:
            found = os.fstat(descriptor)
            # A file with a second name may be another's, such as the database.
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise ManifestError(f"{self._name}: {name} is not a regular file of its own")
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def _blaming_child(what: str) -> Generator[None]:
    """Turn an error that the child can have caused into a ManifestError with this message."""
    try:
        yield
    except OSError as error:
        if error.errno in _CAUSED_BY_CHILD:
            raise ManifestError(what) from error
        raise
