"""Takes the bytes of an upload to disk and into its hashes, beside the thread that checks them."""

import hashlib
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

_SYNC_BYTES = 16 * 1024 * 1024
"""So much is written before the disk is made to keep it: else all of it were left to the end."""


class UploadSink:
    """Writes and hashes in a thread of its own: to the interpreter, all of that is waiting.

    One chunk is under way while the next one is made, never more, so memory does not grow.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._thread = ThreadPoolExecutor(1, "upload-sink")
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
        """Take the next bytes; waits for those before.

        Raises:
            OSError: those before could not be written.
        """
        self.drain()
        self._pending = self._thread.submit(self._take, chunk)

    def drain(self) -> None:
        """Wait until everything is written and hashed.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """End the thread, whatever has become of its bytes."""
        self._thread.shutdown()

    def _take(self, chunk: bytes) -> None:
        self._target.write(chunk)
        self._sha256.update(chunk)
        self._crc32 = zlib.crc32(chunk, self._crc32)
        self._unsynced_bytes += len(chunk)
        if self._unsynced_bytes >= _SYNC_BYTES:
            self._target.flush()
            os.fdatasync(self._target.fileno())
            self._unsynced_bytes = 0
