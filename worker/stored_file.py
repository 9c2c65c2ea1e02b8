"""Writes files to the blob store before the database names them, and copies files out of it."""

import hashlib
import shutil
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


def copy_blob(store: BlobStore, key: str, target: Path) -> None:
    """Copy a file of the store to a path that does not exist.

    Raises:
        BlobNotFoundError: the store has lost it.
    """
    with store.open(key) as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy, 1024 * 1024)


def copy_checked(store: BlobStore, key: str, sha256: str, target: Path) -> None:
    """Copy a file that a training process has made, and compare it with its digest.

    Raises:
        ManifestError: it has changed.
        BlobNotFoundError: the store has lost it.
    """
    copy_blob(store, key, target)
    if manifest.sha256_of(target) != sha256:
        raise manifest.ManifestError(f"{target.name} has changed")
