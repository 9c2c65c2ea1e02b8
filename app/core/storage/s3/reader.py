"""Reads an object of S3 like a file, in ranges."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FIRST_BYTES = 256 * 1024
"""Size of the first range. It doubles while the object is read from front to back."""

MOST_BYTES = 4 * 1024 * 1024
"""Largest range, which is what a reader keeps in memory."""

_BUFFER_BYTES = 64 * 1024


class ObjectReader(io.RawIOBase):
    """An object of known size. A range that fails is requested again, so a torn transfer resumes.

    Args:
        read_range: returns the bytes from one offset to another. It raises what the store raises.
        size: size of the object in bytes.
        first: the first bytes, which are known already.
    """

    def __init__(
        self, read_range: Callable[[int, int], memoryview], size: int, first: memoryview
    ) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0
        self._chunk_at = 0
        self._chunk = first
        self._next_bytes = FIRST_BYTES

    def buffered(self) -> io.BufferedReader:
        return io.BufferedReader(self, _BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        target = memoryview(buffer).cast("B")
        if self._position >= self._size or not target:
            return 0
        begin = self._position - self._chunk_at
        if not 0 <= begin < len(self._chunk):
            self._fetch()
            begin = 0
        taken = self._chunk[begin : begin + len(target)]
        target[: len(taken)] = taken
        self._position += len(taken)
        return len(taken)

    def _fetch(self) -> None:
        """Read the range that begins at the position."""
        goes_on = self._position == self._chunk_at + len(self._chunk)
        self._next_bytes = min(2 * self._next_bytes, MOST_BYTES) if goes_on else FIRST_BYTES
        end = min(self._position + self._next_bytes, self._size)
        self._chunk = memoryview(b"")  # the old one is not needed meanwhile
        self._chunk = self._read_range(self._position, end)
        self._chunk_at = self._position
