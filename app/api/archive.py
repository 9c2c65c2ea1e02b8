"""Computes a zip archive from its files while it is sent, without writing it anywhere.

Files are stored under one fixed date and not compressed, because weights do not compress. The same
adapter is therefore the same archive, byte for byte, on every request, and a client can resume an
interrupted download.

Source: the .ZIP file format specification, PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to
4.3.16, and 4.5.3.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from app.api.blob_reading import BlobSegment, Segment
from app.core.db.tables import File

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_LARGE_END_RECORD = struct.Struct("<4sQ2H2I4Q")
_LARGE_END_LOCATOR = struct.Struct("<4sIQI")
_VERSION, _LARGE_VERSION = 20, 45
_MADE_BY_UNIX = 3 << 8
_UTF8_NAMES = 1 << 11
_STORED = 0
_TIME, _DATE = 0, (1980 - 1980) << 9 | 1 << 5 | 1
"""Midnight of 1 January 1980, the first date the format can write."""
_MODE = 0o100644 << 16
_ELSEWHERE = 2**32 - 1
"""Stands for a size or an offset that the plain form cannot hold. An extra field then has it."""
_LARGE_NUMBERS = 1
"""Kind of this extra field."""


class Member(NamedTuple):
    """A file of the archive, whose bytes are in the blob store."""

    filename: str
    blob_key: str
    bytes: int
    sha256: str
    crc32: int


class Note(NamedTuple):
    """A small file of the archive, made for it."""

    filename: str
    content: bytes

    @property
    def bytes(self) -> int:
        return len(self.content)

    @property
    def crc32(self) -> int:
        return zlib.crc32(self.content)


def zip_segments(files: Iterable[File | Member | Note]) -> list[Segment]:
    """The archive as a sequence of bytes and whole blobs."""
    segments: list[Segment] = []
    directory = b""
    offset = count = 0
    for file in files:
        name, crc32, size = file.filename.encode(), file.crc32, file.bytes
        version = _LARGE_VERSION if max(size, offset) >= _ELSEWHERE else _VERSION
        described = (version, _UTF8_NAMES, _STORED, _TIME, _DATE, crc32, _plain(size), _plain(size))
        sizes = _large_numbers(size, size)
        local = _LOCAL_HEADER.pack(b"PK\x03\x04", *described, len(name), len(sizes)) + name + sizes
        numbers = _large_numbers(size, size, offset)
        rest = (len(name), len(numbers), 0, 0, 0, _MODE, _plain(offset))
        made_by = _MADE_BY_UNIX | version
        directory += _CENTRAL_HEADER.pack(b"PK\x01\x02", made_by, *described, *rest)
        directory += name + numbers
        segments += [
            local,
            file.content
            if isinstance(file, Note)
            else BlobSegment(file.blob_key, size, file.sha256),
        ]
        offset += len(local) + size
        count += 1
    return [*segments, directory + _end(count, len(directory), offset)]


def _plain(number: int) -> int:
    return min(number, _ELSEWHERE)


def _large_numbers(*numbers: int) -> bytes:
    """The extra field with those of the numbers that the plain form cannot hold."""
    large = [number for number in numbers if number >= _ELSEWHERE]
    if not large:
        return b""
    return struct.pack(f"<2H{len(large)}Q", _LARGE_NUMBERS, 8 * len(large), *large)


def _end(count: int, directory_bytes: int, offset: int) -> bytes:
    """The end of an archive whose directory begins at `offset`."""
    counts = (count, count)
    end = _END_RECORD.pack(b"PK\x05\x06", 0, 0, *counts, directory_bytes, _plain(offset), 0)
    if offset < _ELSEWHERE:
        return end
    versions, disks = (_MADE_BY_UNIX | _LARGE_VERSION, _LARGE_VERSION), (0, 0)
    left_bytes = _LARGE_END_RECORD.size - 12  # after its first two fields
    numbers = (*counts, directory_bytes, offset)
    large_end = _LARGE_END_RECORD.pack(b"PK\x06\x06", left_bytes, *versions, *disks, *numbers)
    locator = _LARGE_END_LOCATOR.pack(b"PK\x06\x07", 0, offset + directory_bytes, 1)
    return large_end + locator + end
