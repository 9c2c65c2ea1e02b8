"""Blobs as files below one directory."""

import contextlib
import os
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from app.core.errors import BlobNotFoundError
from app.core.machine import durable
from app.core.storage.blob_store import RESERVED, StoreConditions, StoredBlob
from app.core.storage.scratch import ScratchSpace


class LocalBlobStore:
    """A `BlobStore` in a directory of a local file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        durable.make_directory(root)
        self._scratch = ScratchSpace(root)

    def __str__(self) -> str:
        return f"in {self._root.absolute()}"

    def scratch_file(self) -> Path:
        return self._scratch.scratch_file()

    def put(self, key: str, scratch: Path) -> None:
        target = self._path(key)
        durable.make_directory(target.parent, below=self._root)
        durable.sync(scratch)  # the bytes must be on disk before the name that promises them
        scratch.replace(target)
        durable.sync(target.parent)

    def open(self, key: str) -> BufferedReader:
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise BlobNotFoundError(key) from error

    def delete(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        for directory in path.parents:  # leave no empty directory behind
            if directory.parent == self._root:
                return  # another process may be about to put something into it
            try:
                directory.rmdir()
            except OSError:
                return

    def list_all(self) -> Iterator[StoredBlob]:
        return self._list_below(self._root)

    def list_scratch(self) -> Iterator[Path]:
        return self._scratch.list_scratch()

    def download_url(
        self, key: str, *, filename: str, media_type: str, lifetime_s: int
    ) -> str | None:
        del key, filename, media_type, lifetime_s  # the API itself sends it
        return None

    def collect_stale(self, *, older_than_s: float) -> int | None:
        del older_than_s  # what is left of an upload is a scratch file
        return 0

    def probe_conditions(self) -> StoreConditions | None:
        return None

    def _list_below(self, directory: Path) -> Iterator[StoredBlob]:
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            return  # deleted meanwhile
        with entries:
            for entry in entries:
                if directory == self._root and entry.name.startswith(RESERVED):
                    continue  # scratch files, and what says whose store it is
                if entry.is_dir(follow_symlinks=False):
                    yield from self._list_below(directory / entry.name)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    key = str(directory.relative_to(self._root) / entry.name)
                    yield StoredBlob(key, stat.st_size, age_s=time.time() - stat.st_mtime)

    def _path(self, key: str) -> Path:
        path = self._root / key
        if not path.is_relative_to(self._root) or ".." in path.parts:
            raise ValueError(f"{key!r} leaves the store.")
        return path
