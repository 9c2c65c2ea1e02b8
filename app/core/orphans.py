"""What was left behind by processes that were killed: found, and freed.

Each kind is freed only once it has been left alone for a while, so that nothing is taken from an
upload, a publication or an attempt that is under way.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.core.db.blob_keys import BlobKeyRepository
from app.core.db.inspection import find_running
from app.core.db.session import Database
from app.core.ids import IdPrefix
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore, StoredBlob

GRACE_S = 3600.0
"""Longer than any time between the last byte of a blob and the row that names it."""

LONG_GRACE_S = 86_400.0
HOLD_PREFIX = ".backup-"
"""Of a directory beside the blobs, in which a backup keeps them until it has copied them."""

_BATCH = 1000
"""Blobs looked up at once."""


@dataclass(frozen=True, slots=True)
class Orphans:
    blobs: int
    """That no row names."""
    bytes: int
    """Of those blobs."""
    scratch_files: int
    """Of uploads and publications that were broken off."""
    job_directories: int
    """Of jobs that do not run."""
    held_directories: int
    """Of backups that were broken off."""

    def __bool__(self) -> bool:
        others = (self.job_directories, self.held_directories)
        return any((self.blobs, self.scratch_files, *others))

    def __str__(self) -> str:
        return (
            f"{self.blobs} blobs ({self.bytes:,} bytes), {self.scratch_files} scratch files, "
            f"{self.job_directories} job directories, "
            f"{self.held_directories} directories of broken-off backups"
        )


def find_orphans(database: Database, store: BlobStore, settings: Settings) -> Orphans:
    """Count them; nothing is changed."""
    return _sweep(database, store, settings, lambda _: None, lambda _: None)


def free_orphans(database: Database, store: BlobStore, settings: Settings) -> Orphans:
    """Delete them. Safe while the service runs, and in several processes at once."""
    return _sweep(database, store, settings, lambda blob: store.delete(blob.key), _remove)


def _sweep(
    database: Database,
    store: BlobStore,
    settings: Settings,
    on_blob: Callable[[StoredBlob], None],
    on_path: Callable[[Path], None],
) -> Orphans:
    blobs = size = 0
    for blob in _orphan_blobs(database, store):
        on_blob(blob)
        blobs, size = blobs + 1, size + blob.bytes

    def count(paths: Iterator[Path]) -> int:
        found = list(paths)
        for path in found:
            on_path(path)
        return len(found)

    return Orphans(
        blobs,
        size,
        scratch_files=count(_stale(store.list_scratch(), GRACE_S)),
        job_directories=count(_left_directories(database, settings.work_dir)),
        held_directories=count(_held_directories(settings.data_dir)),
    )


def _orphan_blobs(database: Database, store: BlobStore) -> Iterator[StoredBlob]:
    with database.reading() as session:
        if not BlobKeyRepository(session).names_any():
            return  # more likely the wrong database than one that has forgotten everything
    batch: dict[str, StoredBlob] = {}
    for blob in store.list_all():
        if blob.age_s > GRACE_S:
            batch[blob.key] = blob
        if len(batch) >= _BATCH:
            yield from _without_a_row(database, batch)
            batch.clear()
    yield from _without_a_row(database, batch)


def _without_a_row(database: Database, blobs: dict[str, StoredBlob]) -> list[StoredBlob]:
    """To be asked after the blobs were listed: the other way round, a newer row is not seen."""
    with database.reading() as session:
        named = BlobKeyRepository(session).find_named(blobs.keys())
    return [blob for key, blob in blobs.items() if key not in named]


def _left_directories(database: Database, work_dir: Path) -> Iterator[Path]:
    directories = {
        path.name: path
        for path in work_dir.glob(f"{IdPrefix.JOB}*")
        if path.is_dir() and not path.is_symlink()
    }
    with database.reading() as session:
        running = find_running(session, directories.keys())
    # One by one: the next attempt, which may begin at this moment, has another directory.
    for job_id, path in directories.items():
        if job_id not in running:
            yield from (attempt for attempt in path.iterdir() if _is_left_alone(attempt))


def _held_directories(data_dir: Path) -> Iterator[Path]:
    """A backup that still runs takes files out of its directory all the time."""
    held = data_dir.glob(f"{HOLD_PREFIX}*")
    return (path for path in held if _is_left_alone(path, LONG_GRACE_S))


def _is_left_alone(directory: Path, for_s: float = GRACE_S) -> bool:
    """Whether nothing below it was written for a while."""
    everything = (
        Path(parent, name)
        for parent, directories, files in os.walk(directory)
        for name in (*directories, *files, ".")
    )
    return all(_age_s(path) > for_s for path in everything)


def _stale(paths: Iterator[Path], older_than_s: float) -> Iterator[Path]:
    return (path for path in paths if _age_s(path) > older_than_s)


def _age_s(path: Path) -> float:
    """Seconds since it was last written; none for what has just been deleted."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # what cannot be removed is tried again next time
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # of a job, once it has no other attempt's
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
