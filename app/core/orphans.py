"""Finds and deletes what killed processes left behind.

An orphan is deleted only if nothing has changed it for a while, so that an upload, a publication or
an attempt in progress loses nothing.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from app.core.db.blob_keys import BlobKeyRepository
from app.core.db.inspection import find_running
from app.core.db.session import Database
from app.core.ids import IdPrefix
from app.core.settings import Settings
from app.core.settings.store_urls import is_shared
from app.core.storage.blob_store import BlobStore, StoredBlob
from app.core.storage.local_copies import list_unused
from app.core.storage.trees import remove_tree

logger = logging.getLogger(__name__)

GRACE_S = 3600.0
"""Minimum age of an orphan before it is deleted, in seconds. A new blob gets its row sooner."""

LONG_GRACE_S = 86_400.0
"""The same for what has been under way for long, and for blobs of a store with a clock of its own.
S3 counts the age of a large object from the beginning of its upload, and lets clocks differ by 15
minutes."""

HOLD_PREFIX = ".backup-"
"""Prefix of the directories in which a backup holds blobs until it has copied them."""

_BATCH = 1000
"""Number of blobs looked up in one query."""

_MAX_DEPTH = 16
"""Levels of a directory that are searched for changes. What the service itself writes has fewer; a
hostile training process can nest directories without end."""


@dataclass(frozen=True, slots=True)
class Orphans:
    blobs: int
    """Number of blobs that no row names."""
    bytes: int
    """Total size of those blobs."""
    scratch_files: int
    """Number of files from interrupted uploads and publications, and of unused copies of blobs."""
    job_directories: int
    """Number of directories of jobs that are not running."""
    held_directories: int
    """Number of directories of interrupted backups."""

    def __bool__(self) -> bool:
        return self != Orphans(0, 0, 0, 0, 0)

    def __str__(self) -> str:
        return (
            f"{self.blobs} blobs ({self.bytes:,} bytes), {self.scratch_files} scratch files, "
            f"{self.job_directories} job directories, "
            f"{self.held_directories} directories of interrupted backups"
        )


def find_orphans(database: Database, store: BlobStore, settings: Settings) -> Orphans:
    """Count what is left behind, without changing anything."""
    return _sweep(database, store, settings, may_delete=False)


def free_orphans(
    database: Database, store: BlobStore, settings: Settings, *, batch: int = _BATCH
) -> Orphans:
    """Delete them. This is safe while the service runs, and in several processes at once.

    Args:
        batch: how many blobs are looked up at once.
    """
    return _sweep(database, store, settings, may_delete=True, batch=batch)


def _sweep(
    database: Database,
    store: BlobStore,
    settings: Settings,
    *,
    may_delete: bool,
    batch: int = _BATCH,
) -> Orphans:
    blobs = size = 0
    for blob in _orphan_blobs(database, store, settings, batch):
        blobs, size = blobs + 1, size + blob.bytes
        if may_delete:
            store.delete(blob.key)
    if may_delete and (ended := store.collect_stale(older_than_s=LONG_GRACE_S)):
        logger.warning("%d interrupted uploads to the blob store ended", ended)

    def count(paths: Iterator[Path]) -> int:
        orphans = list(paths)
        for path in orphans if may_delete else ():
            _remove(path)
        return len(orphans)

    scratch = (path for path in store.list_scratch() if _age_s(path) > GRACE_S)
    scratch = chain(scratch, list_unused(settings))
    # A running backup keeps changing its own directory.
    held = settings.data_dir.glob(f"{HOLD_PREFIX}*")
    held = (path for path in held if _is_left_alone(path, LONG_GRACE_S))
    left = _left_directories(database, settings.work_dir)
    return Orphans(blobs, size, count(scratch), count(left), count(held))


def _orphan_blobs(
    database: Database, store: BlobStore, settings: Settings, batch_size: int
) -> Iterator[StoredBlob]:
    urls = (settings.store_url, settings.store_previous_url)
    grace_s = LONG_GRACE_S if any(map(is_shared, urls)) else GRACE_S
    with database.reading() as session:
        if not BlobKeyRepository(session).names_any():
            return  # this is more likely the wrong database than an empty one
    batch: dict[str, StoredBlob] = {}
    for blob in store.list_all():
        if blob.age_s > grace_s:
            batch[blob.key] = blob
        if len(batch) >= batch_size:
            yield from _without_a_row(database, batch)
            batch.clear()
    yield from _without_a_row(database, batch)


def _without_a_row(database: Database, blobs: dict[str, StoredBlob]) -> list[StoredBlob]:
    """Return the blobs that no row names.

    The rows must be read after the blobs were listed, or the row of a new blob would be missed.
    """
    with database.reading() as session:
        named = BlobKeyRepository(session).find_named(blobs.keys())
    return [blob for key, blob in blobs.items() if key not in named]


def _left_directories(database: Database, work_dir: Path) -> Iterator[Path]:
    directories = {
        path.name: path
        for prefix in (IdPrefix.JOB, IdPrefix.TASK)
        for path in work_dir.glob(f"{prefix}*")
        if path.is_dir() and not path.is_symlink()
    }
    with database.reading() as session:
        running = find_running(session, directories.keys())
    # One by one: the next attempt, which may begin at this moment, has another directory.
    for owner_id, path in directories.items():
        if owner_id not in running:
            yield from (attempt for attempt in path.iterdir() if _is_left_alone(attempt))


def _is_left_alone(directory: Path, for_s: float = GRACE_S) -> bool:
    """Whether nothing in the directory has changed for `for_s` seconds."""
    return all(_age_s(path) > for_s for path in _walk(directory))


def _walk(directory: Path) -> Iterator[Path]:
    """The directory and all that is in it, down to `_MAX_DEPTH`. Follows no link."""
    for parent, directories, files in os.walk(directory):
        yield from (Path(parent, name) for name in (".", *directories, *files))
        if len(Path(parent).relative_to(directory).parts) >= _MAX_DEPTH:
            directories.clear()


def _age_s(path: Path) -> float:
    """Seconds since the path was last written. 0 if it was just deleted."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
    except OSError:  # its names are too long for a path, as no service makes them
        return math.inf


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_tree(path.parent, path.name)  # what cannot be removed is tried again next time
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # the job's directory, once it has no other attempt
    else:
        path.unlink(missing_ok=True)
