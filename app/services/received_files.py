"""Writes the bytes of a new file to disk, and hashes and checks them on the way.

The bytes come in a multipart form (`app/api/multipart.py`), or from the parts of an upload.
Memory stays constant whatever the size of the file.
"""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from app.core.dataset.checker import DatasetSummary
from app.core.dataset.file_check import FileChecker
from app.core.dataset.file_kinds import FileKind
from app.core.dataset.tables.process import check_in_process
from app.core.errors import InvalidFileError, InvalidRequestError, StateConflictError
from app.core.storage.blob_store import BlobStore

_SYNC_BYTES = 16 * 1024 * 1024
"""Bytes after which written data is forced to disk, so that the end has little to wait for."""

_CHUNK_BYTES = 1024 * 1024

RequireRoom = Callable[[int], None]
"""Raises StorageFullError if the disk has no room for so many more bytes."""


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file in the store's scratch space whose last byte has been written."""

    path: Path
    filename: str
    bytes: int
    sha256: str
    crc32: int
    summary: DatasetSummary
    fields: dict[str, str]
    """The other fields of the form."""
    unchecked_table: FileKind | None = None
    """Kind of a table whose rows `check_table` has yet to check."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A pending upload, and the parts that its file will consist of."""

    upload_id: str
    filename: str
    bytes: int
    file_expires_after_s: int | None
    part_ids: list[str]
    blobs: list[tuple[str, str]]
    """Key and sha256 of each part, in the order of the file."""


class FileSink:
    """Writes and hashes a file in a thread of its own, beside the thread that checks the lines.

    It handles one chunk while the caller makes the next one, so memory does not grow.
    """

    def __init__(self, target: BinaryIO, *, sync_bytes: int = _SYNC_BYTES) -> None:
        self._target = target
        self._sync_bytes = sync_bytes
        self._thread = ThreadPoolExecutor(1, "file-sink")
        self._pending: Future[None] | None = None
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._unsynced_bytes = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def crc32(self) -> int:
        return self._crc32

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, once the bytes before them are written.

        Raises:
            OSError: the bytes before them could not be written.
        """
        self.drain()
        self._pending = self._thread.submit(self._take, chunk)

    def drain(self) -> None:
        """Wait until all bytes are written and hashed.

        Raises:
            OSError: they could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """End the thread, whether or not the bytes could be written."""
        self._thread.shutdown()

    def _take(self, chunk: bytes) -> None:
        self._target.write(chunk)
        self._sha256.update(chunk)
        self._crc32 = zlib.crc32(chunk, self._crc32)
        self._unsynced_bytes += len(chunk)
        if self._unsynced_bytes >= self._sync_bytes:
            self._target.flush()
            os.fdatasync(self._target.fileno())
            self._unsynced_bytes = 0


@contextlib.contextmanager
def scratch_file(store: BlobStore) -> Generator[Path]:
    """A path in the store's scratch space. What is left there at the end is deleted."""
    scratch = store.scratch_file()
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def assemble(
    store: BlobStore, plan: Assembly, scratch: Path, *, md5: str | None, require_room: RequireRoom
) -> ReceivedFile:
    """Join the parts of an upload into one file at `scratch`. A table's rows are not checked yet.

    Args:
        md5: MD5 of the whole file in hexadecimal digits, if the client gave it.

    Raises:
        BlobNotFoundError: a part is gone, for example because the upload was cancelled meanwhile.
        InvalidFileError: the file is not a dataset. It may have been read in part only.
        InvalidRequestError: the file has another MD5.
        StateConflictError: the bytes of a part are not the bytes that were received.
        StorageFullError: the disk has no room for the file.
    """
    checker = FileChecker()
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    require_room(plan.bytes)
    with scratch.open("xb") as target:
        sink = FileSink(target)
        try:
            for key, sha256 in plan.blobs:
                part_digest = hashlib.sha256()
                with store.open(key) as part:
                    while chunk := part.read(_CHUNK_BYTES):
                        require_room(len(chunk))  # other requests write as well
                        part_digest.update(chunk)
                        sink.feed(chunk)
                        checker.feed(chunk)
                        if checker.has_stopped:
                            check_content(checker.finish())
                        if md5:
                            digest.update(chunk)
                        size += len(chunk)
                if part_digest.hexdigest() != sha256:
                    raise lost_bytes(plan.upload_id)
            sink.drain()
        finally:
            sink.close()
    if md5 and digest.hexdigest() != md5.lower():
        raise InvalidRequestError(
            f"The file has the MD5 {digest.hexdigest()}, not {md5.lower()}. List the parts in the "
            "order of their bytes in the file. If they are in that order already, create a new "
            "upload.",
            code="upload_md5_mismatch",
            param="md5",
        )
    summary = checker.finish()
    check_content(summary)
    return ReceivedFile(
        path=scratch,
        filename=plan.filename,
        bytes=size,
        sha256=sink.sha256,
        crc32=sink.crc32,
        summary=summary,
        fields={},
        unchecked_table=checker.table,
    )


def check_table(received: ReceivedFile) -> ReceivedFile:
    """Check a table in a process of its own, which takes as long as its rows need.

    Returns:
        The file with what was found. Its summary may have problems.
    """
    if received.unchecked_table is None:
        return received
    summary = check_in_process(received.path, received.unchecked_table)
    return replace(received, summary=summary, unchecked_table=None)


def check_content(summary: DatasetSummary) -> None:
    """Raises InvalidFileError, which lists the problems, unless the file is a dataset."""
    if not summary.problems:
        return
    first = summary.problems[0]
    where = f"line {first.line}" + (f", {first.path}" if first.path else "")
    start = "" if first.code == "unsupported_file" else f" In {where}:"
    more = len(summary.problems) - 1
    count = f"at least {more}" if summary.is_partial else f"{more}"
    others = f" And {count} more; see 'errors'." if more else ""
    raise InvalidFileError(
        f"The file is not a dataset.{start} {first.message}{others}",
        param="file",
        problems=summary.problems,
        is_partial=summary.is_partial,
    )


def lost_bytes(upload_id: str) -> StateConflictError:
    """The error for parts whose bytes the service itself has lost or damaged."""
    return StateConflictError(
        f"The service has lost bytes of upload {upload_id}. Cancel it and send the file again.",
        code="upload_damaged",
    )
