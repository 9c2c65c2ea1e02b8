"""Sends blobs with a length, an ETag and ranges, so that downloads can be resumed."""

import base64
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from io import BufferedReader
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from app.api.deps import Resources
from app.api.errors import error_response
from app.api.polls.entity_tags import lists_tag
from app.core.access import Caller
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action, AuditLog
from app.core.db.tables import File
from app.core.errors import BlobNotFoundError, NotFoundError, StorageFullError
from app.core.storage.blob_store import BlobStore

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 384 * 1024
"""Size of a chunk: a multiple of three, so that each chunk can be encoded in base64 alone."""

_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_FROM_FIRST_BYTE = "bytes 0-"
"""How the header `Content-Range` of a download that begins at the first byte begins."""

_ONE_DOWNLOAD = timedelta(hours=1)
"""How long later ranges count as the same download."""

_NOT_IN_NAMES = re.compile(
    r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|' r"\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that end a header or a name, name a directory, or change how a name is displayed."""
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class BlobSegment:
    """A whole blob as one part of an answer."""

    key: str
    bytes: int
    """Length of the blob itself."""
    in_base64: bool = False
    """True to send it in base64, without line breaks."""


Segment = bytes | BlobSegment


def send_file(request: Request, store: BlobStore, file: File, *, in_base64: bool) -> Response:
    """Send one file. Its base64 form has its own length, ETag and ranges."""
    is_csv = file.filename.endswith(".csv")
    plain_type = "text/csv" if is_csv else "application/octet-stream"
    return send_segments(
        request,
        store,
        [BlobSegment(file.blob_key, file.bytes, in_base64=in_base64)],
        etag=f"{file.sha256}-base64" if in_base64 else file.sha256,
        media_type="text/plain" if in_base64 else plain_type,
        filename=f"{file.filename}.base64" if in_base64 else file.filename,
    )


def send_segments(
    request: Request,
    store: BlobStore,
    segments: Sequence[Segment],
    *,
    etag: str,
    media_type: str,
    filename: str,
) -> Response:
    """Send the segments one after the other, or the range of bytes that the request asks for.

    Args:
        etag: identifies the bytes; other bytes must have another ETag.
        filename: name under which a browser saves the download.
    """
    _check_blobs(store, segments)
    total = sum(_length(segment) for segment in segments)
    headers = {
        "accept-ranges": "bytes",
        "etag": f'"{etag}"',
        "content-disposition": attachment(filename),
    }
    if lists_tag(request.headers.get("if-none-match", ""), headers["etag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    asked = _asked_range(request, total, etag=headers["etag"])
    if asked is not None and asked.start >= asked.stop:
        return error_response(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The range begins after the end of the file, which has {total} bytes.",
            code="range_not_satisfiable",
            headers={"content-range": f"bytes */{total}"},
        )
    part = asked or range(total)
    headers["content-length"] = str(len(part))
    if asked is not None:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{total}"
    return StreamingResponse(
        _read(store, segments, part),
        status_code=HTTPStatus.OK if asked is None else HTTPStatus.PARTIAL_CONTENT,
        media_type=media_type,
        headers=headers,
    )


def record_download(
    response: Response,
    resources: Resources,
    caller: Caller,
    action: Action,
    object_id: str,
    *,
    now: datetime,
) -> None:
    """Record a download in the audit trail.

    A later range is recorded as well, unless the same key has recently begun the same download. A
    full disk stops no download, because it may be how a user makes room: the download is then only
    logged.
    """
    if response.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    if not _begins_download(response):
        since = {"not_before": now - _ONE_DOWNLOAD}
        if resources.read(lambda db: AuditLog(db).has_recent(caller, action, object_id, **since)):
            return
    record = partial(audit.record, by=caller, action=action, object_id=object_id, now=now)
    try:
        resources.write(record)
    except StorageFullError:
        context = {"action": action, "object_id": object_id}
        logger.warning("a download is not in the audit trail: the disk is full", extra=context)


def attachment(filename: str) -> str:
    """The header `Content-Disposition` of a download, which no browser shows as a page.

    Old programs read the first name, which is ASCII; all others read the second (RFC 6266, 4.3).
    Neither can name a directory or hold a control character.
    """
    name = _NOT_IN_NAMES.sub("_", filename).lstrip(".")[:_MAX_NAME] or "download"
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _begins_download(response: Response) -> bool:
    return response.headers.get("content-range", _FROM_FIRST_BYTE).startswith(_FROM_FIRST_BYTE)


def open_blob(store: BlobStore, key: str) -> BufferedReader:
    """The bytes of a file, from the first. The caller closes it.

    Raises:
        NotFoundError: the file has just been deleted.
    """
    try:
        return store.open(key)
    except BlobNotFoundError as error:
        raise NotFoundError(
            "The bytes of this file have been deleted.", code="file_not_found"
        ) from error


def _check_blobs(store: BlobStore, segments: Sequence[Segment]) -> None:
    """Check that the blobs exist before the status line is sent: a file may just be deleted."""
    for segment in segments:
        if isinstance(segment, BlobSegment):
            open_blob(store, segment.key).close()


def _length(segment: Segment) -> int:
    if isinstance(segment, bytes):
        return len(segment)
    return 4 * -(-segment.bytes // 3) if segment.in_base64 else segment.bytes


def _asked_range(request: Request, total: int, *, etag: str) -> range | None:
    """The range of bytes that the request asks for, or None for all bytes.

    Several ranges and units other than bytes are ignored, as RFC 9110, section 14.2, allows. So is
    a range that ends before it begins.
    """
    if request.headers.get("if-range", etag) != etag:
        return None  # the file has changed since the client read the first part
    match = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # a suffix range: the last bytes
        return range(max(0, total - int(last)), total)
    if last and int(last) < int(first):
        return None
    stop = min(int(last) + 1, total) if last else total
    return range(int(first), stop)


def _read(store: BlobStore, segments: Sequence[Segment], part: range) -> Iterator[bytes]:
    offset = 0
    for segment in segments:
        length = _length(segment)
        begin, end = max(part.start - offset, 0), min(part.stop - offset, length)
        offset += length
        if begin >= end:
            continue
        if isinstance(segment, bytes):
            yield segment[begin:end]
        elif segment.in_base64:
            yield from _read_in_base64(store, segment.key, begin, end)
        else:
            yield from _read_blob(store, segment.key, begin, end)


def _read_in_base64(store: BlobStore, key: str, begin: int, end: int) -> Iterator[bytes]:
    """Part of the blob's base64, in which three bytes become four characters."""
    skipped, wanted = begin % 4, end - begin
    for chunk in _read_blob(store, key, begin // 4 * 3, -(-end // 4) * 3):
        encoded = base64.b64encode(chunk)[skipped:][:wanted]
        skipped, wanted = 0, wanted - len(encoded)
        yield encoded


def _read_blob(store: BlobStore, key: str, begin: int, end: int) -> Iterator[bytes]:
    with store.open(key) as source:
        source.seek(begin)
        while begin < end:
            chunk = source.read(min(_CHUNK_BYTES, end - begin))
            if not chunk:
                return  # the client notices that bytes are missing from the announced length
            begin += len(chunk)
            yield chunk
