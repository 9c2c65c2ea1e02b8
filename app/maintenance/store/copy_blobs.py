"""Copies every blob that a row names into another store, while the service runs.

A blob reaches the other store only with the size and the sha256 that its row promises. What is
there already is left alone, so a copy that was killed is continued by the next one.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import TypeVar

from app.core.db.blob_keys import (
    BlobKeyRepository,
    NamedBlob,
    iterate_model_objects,
    iterate_named,
    iterate_task_blobs,
)
from app.core.db.session import Database
from app.core.disk import as_storage_full
from app.core.errors import BlobExistsError, BlobNotFoundError
from app.core.storage.blob_store import BlobStore

PARALLEL = 8
"""Number of blobs that are copied at once: a request to an S3 server takes ten milliseconds, of
which the processor is needed for one."""

_AHEAD = 4
"""How many blobs are read from the database ahead of each that is being copied."""

_CHUNK_BYTES = 1024 * 1024

Result = TypeVar("Result")


class Outcome(Enum):
    COPIED = auto()
    THERE = auto()
    """The other store had it already."""
    GONE = auto()
    """It was deleted after it was listed."""
    DAMAGED = auto()


@dataclass
class CopyReport:
    """What a copy has done so far."""

    blobs: int = 0
    """Number of blobs that were looked at."""
    bytes: int = 0
    """Their total size."""
    copied: int = 0
    copied_bytes: int = 0
    gone: int = 0
    """Number of blobs that were deleted meanwhile."""
    damaged: list[str] = field(default_factory=list[str])
    """Each blob that has no intact copy, with its owner and what is wrong with it."""

    def count(self, blob: NamedBlob, outcome: Outcome, damage: str) -> None:
        self.blobs, self.bytes = self.blobs + 1, self.bytes + blob.bytes
        match outcome:
            case Outcome.COPIED:
                self.copied, self.copied_bytes = self.copied + 1, self.copied_bytes + blob.bytes
            case Outcome.GONE:
                self.gone += 1
            case Outcome.DAMAGED:
                self.damaged.append(f"{blob.key} ({blob.owner}) {damage}")
            case Outcome.THERE:
                pass


@dataclass
class Total:
    """Number and size of some blobs."""

    blobs: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count one more blob of this size."""
        self.blobs, self.bytes = self.blobs + 1, self.bytes + size

    @classmethod
    def of(cls, blobs: Iterator[NamedBlob]) -> "Total":
        total = cls()
        for blob in blobs:
            total.add(blob.bytes)
        return total


def iterate_blobs(database: Database) -> Iterator[NamedBlob]:
    """Every blob that has to be in the store of the installation, page by page."""
    kinds = (iterate_named, iterate_task_blobs, iterate_model_objects)
    return chain.from_iterable(iterate(database.reading) for iterate in kinds)


def size_in(store: BlobStore, key: str) -> int | None:
    """Size of a blob in a store, in bytes. None if the store does not have it."""
    try:
        with store.open(key) as blob:
            return blob.seek(0, os.SEEK_END)
    except BlobNotFoundError:
        return None


def map_ahead(
    function: Callable[[NamedBlob], Result], blobs: Iterator[NamedBlob], *, parallel: int
) -> Iterator[tuple[NamedBlob, Result]]:
    """Call a function for several blobs at once, and yield its results in order.

    Args:
        function: is called in other threads. What it raises ends the iteration.
        blobs: few are read before their turn, so the memory is constant.
        parallel: number of calls at once.
    """
    waiting: deque[tuple[NamedBlob, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(parallel)
    try:
        for blob in blobs:
            waiting.append((blob, pool.submit(function, blob)))
            if len(waiting) >= parallel * _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class BlobCopier:
    """Copies blobs from one store to another, several at once.

    Args:
        database: says whether a blob that cannot be copied is still needed.
        source: is only read.
        target: gets the blobs.
        verifies: whether to read what is in `target` already, and to copy it again if it has other
            bytes.
        parallel: number of blobs that are copied at once.
    """

    database: Database
    source: BlobStore
    target: BlobStore
    verifies: bool = False
    parallel: int = PARALLEL

    def copy_all(
        self, blobs: Iterator[NamedBlob], on_progress: Callable[[CopyReport], None]
    ) -> CopyReport:
        """Copy blobs, in constant memory.

        Args:
            blobs: each is read when its turn is near.
            on_progress: called after every blob, in this thread.

        Raises:
            StorageFullError: the disk of the target, or of its scratch files, is full.
        """
        report = CopyReport()
        for blob, (outcome, damage) in map_ahead(self.copy, blobs, parallel=self.parallel):
            report.count(blob, outcome, damage)
            on_progress(report)
        return report

    def copy(self, blob: NamedBlob) -> tuple[Outcome, str]:
        """Copy one blob. Returns what became of it, and what is wrong with it if it is damaged.

        Raises:
            StorageFullError: the disk of the target, or of its scratch files, is full.
        """
        if self._is_there(blob):
            return Outcome.THERE, ""
        damage = self._transfer(blob)
        if damage is None:
            return Outcome.COPIED, ""
        with self.database.reading() as session:
            if not BlobKeyRepository(session).still_names(blob):
                return Outcome.GONE, ""
        return Outcome.DAMAGED, damage

    def _is_there(self, blob: NamedBlob) -> bool:
        try:
            with self.target.open(blob.key) as copy:
                if not self.verifies:
                    return copy.seek(0, os.SEEK_END) == blob.bytes
                return hashlib.file_digest(copy, "sha256").hexdigest() == blob.sha256
        except BlobNotFoundError:
            return False

    def _transfer(self, blob: NamedBlob) -> str | None:
        """Copy a blob. Returns why that is impossible, as the end of a sentence about the blob."""
        scratch = self.target.scratch_file()
        digest, size = hashlib.sha256(), 0
        try:
            with self.source.open(blob.key) as original, scratch.open("xb") as copy:
                while size <= blob.bytes and (chunk := _read(original)):
                    copy.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            if size != blob.bytes:
                return f"does not have the {blob.bytes:,} bytes that were written"
            if digest.hexdigest() != blob.sha256:
                return "does not have the bytes that were written"
            self._put(blob.key, scratch)
        except BlobNotFoundError:
            return "is missing"
        except _UnreadableError as error:
            return f"cannot be read: {error}"
        except OSError as error:
            full = as_storage_full(error)
            if full is not None:
                raise full from error
            raise
        finally:
            scratch.unlink(missing_ok=True)
        return None

    def _put(self, key: str, scratch: Path) -> None:
        try:
            self.target.put(key, scratch)
        except BlobExistsError:  # with other bytes than its row promises
            self.target.delete(key)
            self.target.put(key, scratch)


class _UnreadableError(Exception):
    """The disk of the source does not give the bytes of a blob back."""


def _read(source: BufferedReader) -> bytes:
    try:
        return source.read(_CHUNK_BYTES)
    except OSError as error:  # such as a bad sector; the other blobs can still be copied
        raise _UnreadableError(str(error)) from error
