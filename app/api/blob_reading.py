"""Reads blobs for the clients of the API, and for the processes that work for it.

A blob that is read to its end is hashed on the way.
"""

import base64
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader

from app.api.deps import Resources
from app.core.errors import BlobDamagedError, BlobNotFoundError, NotFoundError, ServiceError
from app.core.storage.blob_store import BlobStore
from app.core.storage.local_copies import BlobRef, has_descriptor, open_local

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 384 * 1024
"""Size of a chunk: a multiple of three, so that each chunk can be encoded in base64 alone."""


@dataclass(frozen=True, slots=True)
class BlobSegment:
    """A whole blob as one part of an answer."""

    key: str
    bytes: int
    """Length of the blob itself."""
    sha256: str
    in_base64: bool = False
    """True to send it in base64, without line breaks."""


Segment = bytes | BlobSegment


def length_of(segment: Segment) -> int:
    """Number of bytes of a segment as it is sent."""
    if isinstance(segment, bytes):
        return len(segment)
    return 4 * -(-segment.bytes // 3) if segment.in_base64 else segment.bytes


def open_blob(store: BlobStore, key: str) -> BufferedReader:
    """The bytes of a file, from the first. The caller closes it.

    Raises:
        NotFoundError: the file has just been deleted.
    """
    try:
        return store.open(key)
    except BlobNotFoundError as error:
        raise _deleted() from error


def open_for_process(resources: Resources, blob: BlobRef) -> BufferedReader:
    """A file that another process can read by its descriptor. The caller closes it.

    Raises:
        NotFoundError: the file has just been deleted.
        ServiceError: its bytes are damaged, or as `open_local`.
    """
    try:
        room = resources.require_room
        return open_local(resources.store, resources.settings, blob, require_room=room)
    except BlobNotFoundError as error:
        raise _deleted() from error
    except BlobDamagedError as error:
        logger.exception("damaged bytes")
        raise ServiceError(
            "The service has damaged the bytes of this file. Ask its operator to run 'tunery "
            "doctor'.",
            code="file_damaged",
        ) from error


def open_segments(
    store: BlobStore, segments: Sequence[Segment], part: range
) -> dict[str, BufferedReader]:
    """Open what `read_segments` needs, before the status line is sent.

    Returns:
        The first blob, and those that take no descriptor, by their keys. The others are opened
        again when it is their turn, so that no connection takes more than one descriptor.

    Raises:
        NotFoundError: a file has just been deleted.
    """
    opened: dict[str, BufferedReader] = {}
    for segment, _, _ in _within(segments, part):
        if isinstance(segment, BlobSegment):
            source = open_blob(store, segment.key)
            if opened and has_descriptor(source):
                source.close()
            else:
                opened[segment.key] = source
    return opened


def read_segments(
    store: BlobStore,
    segments: Sequence[Segment],
    part: range,
    opened: dict[str, BufferedReader],
) -> Iterator[bytes]:
    """The bytes of a part of the segments, chunk by chunk.

    Args:
        store: the store.
        segments: the segments, one after the other.
        part: the bytes to read.
        opened: from `open_segments`. They are closed.

    Raises:
        BlobDamagedError: a blob does not have the bytes that were written. Its last chunk is not
            among those that were read.
    """
    for segment, begin, end in _within(segments, part):
        if isinstance(segment, bytes):
            yield segment[begin:end]
            continue
        with opened.pop(segment.key, None) or store.open(segment.key) as source:
            if segment.in_base64:
                yield from _read_in_base64(source, segment, begin, end)
            else:
                yield from _read_blob(source, segment, begin, end)


def _within(segments: Sequence[Segment], part: range) -> Iterator[tuple[Segment, int, int]]:
    """The segments that have bytes of the part, with the first of these and the one after it."""
    offset = 0
    for segment in segments:
        length = length_of(segment)
        begin, end = max(part.start - offset, 0), min(part.stop - offset, length)
        offset += length
        if begin < end:
            yield segment, begin, end


def _read_in_base64(
    source: BufferedReader, segment: BlobSegment, begin: int, end: int
) -> Iterator[bytes]:
    """Part of the blob's base64, in which three bytes become four characters."""
    skipped, wanted = begin % 4, end - begin
    last = min(-(-end // 4) * 3, segment.bytes)
    for chunk in _read_blob(source, segment, begin // 4 * 3, last):
        encoded = base64.b64encode(chunk)[skipped:][:wanted]
        skipped, wanted = 0, wanted - len(encoded)
        yield encoded


def _read_blob(
    source: BufferedReader, segment: BlobSegment, begin: int, end: int
) -> Iterator[bytes]:
    """Part of a blob. The last chunk of a whole blob is sent only if all bytes were right.

    Raises:
        BlobDamagedError: they were not. The client has fewer bytes than were announced.
    """
    sha256 = hashlib.sha256() if (begin, end) == (0, segment.bytes) else None
    source.seek(begin)
    while begin < end:
        chunk = source.read(min(_CHUNK_BYTES, end - begin))
        if not chunk:
            logger.error("the blob %s is shorter than what was written", segment.key)
            return  # the client notices that bytes are missing from the announced length
        begin += len(chunk)
        if sha256 is not None:
            sha256.update(chunk)
            if begin == end and sha256.hexdigest() != segment.sha256:
                raise BlobDamagedError(segment.key)
        yield chunk


def _deleted() -> NotFoundError:
    return NotFoundError("The bytes of this file have been deleted.", code="file_not_found")
