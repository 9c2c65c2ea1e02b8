"""Blobs as regular files of this machine, for processes that get a file by its descriptor.

A store on another machine has no descriptors, so its blobs are copied first. Copies are kept for
the next request, within a limit.
"""

import hashlib
import io
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from app.core.errors import BlobDamagedError
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore

UNUSED_S = 86_400.0
"""Time after which a copy that nobody has used is deleted, in seconds. Its blob may be deleted."""

MAX_BYTES = 4 * 1024**3
"""Maximum size of all copies that are kept: hundreds of adapters, or some datasets."""

_CHUNK_BYTES = 1024 * 1024
_LOCKS = [threading.Lock() for _ in range(64)]
"""Held while a blob is copied, so that many requests for one adapter copy it once."""


class BlobRef(NamedTuple):
    """A blob as a row names it."""

    key: str
    sha256: str


def open_local(
    store: BlobStore,
    settings: Settings,
    blob: BlobRef,
    *,
    require_room: Callable[[int], None],
    max_bytes: int = MAX_BYTES,
) -> BufferedReader:
    """The blob as an open file that has a descriptor. The caller closes it.

    Args:
        store: the store.
        settings: those of the service.
        blob: the blob.
        require_room: raises StorageFullError if the disk has no room for so many more bytes.
        max_bytes: maximum size of all copies that are kept. A larger blob is copied and not kept.

    Raises:
        BlobNotFoundError: no blob has this key.
        BlobDamagedError: the store has other bytes than were written.
        StorageFullError: the disk has no room for the copy.
        StoreAwayError: the store does not answer.
    """
    copy = settings.copies_dir / blob.sha256
    with _LOCKS[int(blob.sha256[:2], 16) % len(_LOCKS)]:
        try:
            os.utime(copy)
            return copy.open("rb")
        except FileNotFoundError:
            source = store.open(blob.key)
        if has_descriptor(source):
            return source
        with source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            require_room(size)
            return _copy(source, copy, blob, size=size, max_bytes=max_bytes)


def list_unused(settings: Settings) -> Iterator[Path]:
    """The copies that nobody has used for a day."""
    since_s = time.time() - UNUSED_S
    return (path for used_s, _, path in _list_copies(settings.copies_dir) if used_s < since_s)


def has_descriptor(source: BufferedReader) -> bool:
    """Whether a blob is a file of this machine, which another process can be given."""
    try:
        source.fileno()
    except io.UnsupportedOperation:
        return False
    return True


def _copy(
    source: BufferedReader, target: Path, blob: BlobRef, *, size: int, max_bytes: int
) -> BufferedReader:
    target.parent.mkdir(exist_ok=True)
    _make_room(target.parent, max_bytes - size)
    unfinished = target.with_name(f"{secrets.token_hex(16)}.partial")
    sha256 = hashlib.sha256()
    try:
        with unfinished.open("xb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                sha256.update(chunk)
                file.write(chunk)
        if sha256.hexdigest() != blob.sha256:
            raise BlobDamagedError(blob.key)
        copy = unfinished.open("rb")
        if size <= max_bytes:
            unfinished.rename(target)
        return copy
    finally:
        unfinished.unlink(missing_ok=True)  # whoever has opened it can still read it


def _make_room(directory: Path, max_bytes: int) -> None:
    """Delete the copies that were not used for longest, until the others have `max_bytes`."""
    copies = sorted(_list_copies(directory))
    left = sum(size for _, size, _ in copies)
    for _, size, path in copies:
        if left <= max(0, max_bytes):
            return
        path.unlink(missing_ok=True)
        left -= size


def _list_copies(directory: Path) -> Iterator[tuple[float, int, Path]]:
    """Time of last use, size and path of each copy, and of those that are being made."""
    for path in directory.glob("*"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # deleted meanwhile
            continue
        yield stat.st_mtime, stat.st_size, path
