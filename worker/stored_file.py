"""Writes files to the blob store before the database names them, and copies files out of it."""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from app.core import manifest
from app.core.db.repositories.leases import Lease
from app.core.db.tables import File
from app.core.ids import IdPrefix, new_id
from app.core.storage.blob_store import BlobStore

READS = 2
"""How often a file is read whose bytes are not those that were stored."""

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is in the blob store but not yet in the database."""

    name: str
    blob_key: str
    bytes: int
    sha256: str
    crc32: int


def store_bytes(store: BlobStore, key: str, chunks: Iterable[bytes]) -> StoredFile:
    """Write bytes to the store, and compute their size and checksums meanwhile."""
    sha256, crc32, size = hashlib.sha256(), 0, 0
    scratch = store.scratch_file()
    try:
        with scratch.open("xb") as copy:
            for chunk in chunks:
                copy.write(chunk)
                sha256.update(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                size += len(chunk)
        store.put(key, scratch)
    finally:
        scratch.unlink(missing_ok=True)  # a full disk must not stay full
    return StoredFile(PurePosixPath(key).name, key, size, sha256.hexdigest(), crc32)


def as_file(stored: StoredFile, lease: Lease, *, now: datetime) -> File:
    """Return the row that publishes a stored file as a result of its job."""
    return File(
        id=new_id(IdPrefix.FILE),
        project_id=lease.project_id,
        purpose="fine-tune-results",
        filename=stored.name,
        bytes=stored.bytes,
        sha256=stored.sha256,
        crc32=stored.crc32,
        blob_key=stored.blob_key,
        created_at=now,
        job_id=lease.job_id,
    )


class DataDamagedError(Exception):
    """The store has other bytes of a data file than were uploaded."""

    def __init__(self, file: File) -> None:
        super().__init__(file.id)
        self.file = file


def copy_data(store: BlobStore, file: File, target: Path) -> None:
    """Copy a data file to a path that does not exist, and compare it with what was uploaded.

    Raises:
        DataDamagedError: it has changed.
        BlobNotFoundError: the store has lost it.
    """
    try:
        copy_checked(store, file.blob_key, file.sha256, target)
    except manifest.ManifestError as error:
        raise DataDamagedError(file) from error


def copy_checked(store: BlobStore, key: str, sha256: str, target: Path) -> None:
    """Copy a file of the store to a path that does not exist, and compare it with its digest.

    If they differ, it is read once more: the transfer may have damaged it, and not the store.

    Raises:
        ManifestError: it has changed.
        BlobNotFoundError: the store has lost it.
    """
    for _ in range(READS):
        if _copy(store, key, target) == sha256:
            return
        target.unlink()
    raise manifest.ManifestError(f"{target.name} has changed")


def _copy(store: BlobStore, key: str, target: Path) -> str:
    """Copy a file, and return its digest."""
    digest = hashlib.sha256()
    with store.open(key) as source, target.open("xb") as copy:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()
