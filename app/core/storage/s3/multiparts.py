"""Ends uploads in parts that a killed process has left behind. A bucket keeps and bills them."""

import re
from contextlib import suppress
from datetime import datetime, timedelta
from html import unescape

from app.core.clock import utc_now
from app.core.errors import StoreAwayError
from app.core.storage.s3 import plain
from app.core.storage.s3.calls import AbsentError, Calls, status_of
from app.core.storage.s3.signing import Signer

_MAX_BYTES = 8 * 1024 * 1024
"""Maximum size of a page of the list, which has 1,000 uploads."""

_NO_UPLOAD = "NoSuchUpload"
_NOT_OFFERED = 501
_UPLOAD = re.compile(r"<Upload>(.*?)</Upload>", re.DOTALL)
_FIELD = r"<{0}>(.*?)</{0}>"


def collect_stale(signer: Signer, calls: Calls, *, older_than_s: float) -> int | None:
    """End the uploads below the prefix that began long ago.

    Returns:
        How many were ended. None if the server does not list them.

    Raises:
        StoreAwayError: the store does not answer.
    """
    url = signer.sign("GET", None, {"uploads": "", "prefix": signer.prefix})
    try:
        listing = calls.run(lambda: plain.request(url, most=_MAX_BYTES)).decode()
    except AbsentError:
        return None
    except StoreAwayError as error:
        if _NO_UPLOAD in error.for_operator:  # rclone says this of an empty list
            return 0
        if isinstance(error.__cause__, Exception) and status_of(error.__cause__) == _NOT_OFFERED:
            return None
        raise
    limit, ended = utc_now() - timedelta(seconds=older_than_s), 0
    for upload in _UPLOAD.findall(listing):
        key, upload_id, began = (_read(upload, name) for name in ("Key", "UploadId", "Initiated"))
        if key.startswith(signer.prefix) and _parse(began) < limit:
            key = key.removeprefix(signer.prefix)
            abort = signer.sign("DELETE", key, {"uploadId": upload_id})
            _end(calls, abort)
            ended += 1
    return ended


def _end(calls: Calls, url: str) -> None:
    """End an upload, unless another process has ended it meanwhile."""
    try:
        with suppress(AbsentError):
            calls.run(lambda: plain.request(url, "DELETE", most=1024))
    except StoreAwayError as error:
        if _NO_UPLOAD not in error.for_operator:
            raise


def _read(upload: str, name: str) -> str:
    match = re.search(_FIELD.format(name), upload, re.DOTALL)
    return unescape(match[1]) if match else ""


def _parse(time: str) -> datetime:
    return datetime.fromisoformat(time)
