"""Sends blobs with a length, an ETag and ranges, so that downloads can be resumed."""

import logging
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from app.api.blob_reading import (
    BlobSegment,
    Segment,
    length_of,
    open_segments,
    read_segments,
)
from app.api.deps import Resources
from app.api.errors import error_response
from app.api.polls.entity_tags import lists_tag
from app.core.access import Caller
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action, AuditLog
from app.core.db.tables import File
from app.core.errors import StorageFullError

logger = logging.getLogger(__name__)

_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_FROM_FIRST_BYTE = "bytes 0-"
"""How the header `Content-Range` of a download that begins at the first byte begins."""

_SENT = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.TEMPORARY_REDIRECT)

_REDIRECT_S = 600
"""Time in which a client must begin a download to which it was redirected, in seconds."""

_ONE_DOWNLOAD = timedelta(hours=1)
"""How long later ranges count as the same download."""

_NOT_IN_NAMES = re.compile(
    r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|' r"\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that end a header or a name, name a directory, or change how a name is displayed."""
_MAX_NAME = 200


def send_file(request: Request, resources: Resources, file: File, *, in_base64: bool) -> Response:
    """Send one file. Its base64 form has its own length, ETag and ranges."""
    is_csv = file.filename.endswith(".csv")
    plain_type = "text/csv" if is_csv else "application/octet-stream"
    return send_segments(
        request,
        resources,
        [BlobSegment(file.blob_key, file.bytes, file.sha256, in_base64=in_base64)],
        etag=f"{file.sha256}-base64" if in_base64 else file.sha256,
        media_type="text/plain" if in_base64 else plain_type,
        filename=f"{file.filename}.base64" if in_base64 else file.filename,
    )


def send_segments(
    request: Request,
    resources: Resources,
    segments: Sequence[Segment],
    *,
    etag: str,
    media_type: str,
    filename: str,
) -> Response:
    """Send the segments one after the other, or the range of bytes that the request asks for.

    A single blob may be answered with a redirect to the store.

    Args:
        etag: identifies the bytes; other bytes must have another ETag.
        filename: name under which a browser saves the download.
    """
    total = sum(length_of(segment) for segment in segments)
    headers = {
        "accept-ranges": "bytes",
        "etag": f'"{etag}"',
        "content-disposition": attachment(filename),
    }
    if lists_tag(request.headers.get("if-none-match", ""), headers["etag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    redirect = _redirect(request, resources, segments, filename=filename, media_type=media_type)
    if redirect is not None:
        return redirect
    asked = _asked_range(request, total, etag=headers["etag"])
    if asked is not None and asked.start >= asked.stop:
        return error_response(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The range begins after the end of the file, which has {total} bytes.",
            code="range_not_satisfiable",
            headers={"content-range": f"bytes */{total}"},
        )
    part = asked or range(total)
    opened = open_segments(resources.store, segments, part)
    headers["content-length"] = str(len(part))
    if asked is not None:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{total}"
    return StreamingResponse(
        read_segments(resources.store, segments, part, opened),
        status_code=HTTPStatus.OK if asked is None else HTTPStatus.PARTIAL_CONTENT,
        media_type=media_type,
        headers=headers,
    )


def _redirect(
    request: Request,
    resources: Resources,
    segments: Sequence[Segment],
    *,
    filename: str,
    media_type: str,
) -> Response | None:
    """Send the client to the store itself. None if the bytes must pass through here.

    A browser has a cookie instead of a key. Its page may load nothing from elsewhere, so the
    dashboard is never redirected.
    """
    if not resources.settings.store_redirects or "authorization" not in request.headers:
        return None
    match segments:
        case [BlobSegment(in_base64=False) as blob]:
            url = resources.store.download_url(
                blob.key, filename=_shown(filename), media_type=media_type, lifetime_s=_REDIRECT_S
            )
        case _:
            return None
    if url is None:
        return None
    return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers={"location": url})


def record_download(
    request: Request,
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
    if response.status_code not in _SENT:
        return
    if not _begins_download(request, response):
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
    name = _shown(filename)
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _shown(filename: str) -> str:
    """The name without what could end a header, name a directory or mislead a reader."""
    return _NOT_IN_NAMES.sub("_", filename).lstrip(".")[:_MAX_NAME] or "download"


def _begins_download(request: Request, response: Response) -> bool:
    if response.status_code == HTTPStatus.TEMPORARY_REDIRECT:
        return request.headers.get("range", "bytes=0-").startswith("bytes=0-")
    return response.headers.get("content-range", _FROM_FIRST_BYTE).startswith(_FROM_FIRST_BYTE)


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
