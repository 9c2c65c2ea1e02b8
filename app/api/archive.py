"""Computes a zip archive from its files while it is sent, without writing it anywhere.

Files are stored under one fixed date and not compressed, because weights do not compress. The same
adapter is therefore the same archive, byte for byte, on every request, and a client can resume an
interrupted download.

Source: the .ZIP file format specification, PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.16.
"""

import struct
from collections.abc import Sequence

from app.api.streaming import BlobSegment, Segment
from app.core.db.tables import File
from app.core.errors import InvalidRequestError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_VERSION = 20
_MADE_BY_UNIX = 3 << 8 | _VERSION
_UTF8_NAMES = 1 << 11
_STORED = 0
_TIME, _DATE = 0, (1980 - 1980) << 9 | 1 << 5 | 1
"""Midnight of 1 January 1980, the first date the format can write."""
_MODE = 0o100644 << 16
_MAX_OFFSET = 2**32 - 2
"""Largest offset that the plain form can hold; one more marks the form for larger archives."""


def zip_segments(files: Sequence[File]) -> list[Segment]:
    """The archive as a sequence of bytes and whole blobs.

    Raises:
        InvalidRequestError: the archive would exceed the 4 GiB of the format's plain form.
    """
    segments: list[Segment] = []
    directory = b""
    offset = 0
    for file in files:
        name = file.filename.encode()
        described = (_UTF8_NAMES, _STORED, _TIME, _DATE, file.crc32, file.bytes, file.bytes)
        local_bytes = _LOCAL_HEADER.size + len(name) + file.bytes
        if offset + local_bytes > _MAX_OFFSET:
            raise InvalidRequestError(
                "This adapter is too large for one archive. Download its files one by one: see "
                "'result_files' of its checkpoint.",
                code="archive_too_large",
            )
        local = _LOCAL_HEADER.pack(b"PK\x03\x04", _VERSION, *described, len(name), 0) + name
        versions = (_MADE_BY_UNIX, _VERSION)
        rest = (len(name), 0, 0, 0, 0, _MODE, offset)
        directory += _CENTRAL_HEADER.pack(b"PK\x01\x02", *versions, *described, *rest) + name
        segments += [local, BlobSegment(file.blob_key, file.bytes)]
        offset += local_bytes
    count = len(files)
    end = _END_RECORD.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), offset, 0)
    return [*segments, directory + end]
