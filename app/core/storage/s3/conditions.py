"""Finds out which conditions a server of S3 honours. Servers differ, and none says so."""

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError
from obstore.store import S3Store

from app.core.errors import BlobNotFoundError
from app.core.storage.blob_store import RESERVED, BlobStore, StoreConditions
from app.core.storage.s3.calls import AbsentError, Calls

if TYPE_CHECKING:
    from obstore import UpdateVersion

_CONTENT = b"0123456789"


def probe_conditions(blobs: BlobStore, store: S3Store, calls: Calls) -> StoreConditions:
    """Put an object, try what is possible with it, and delete it.

    Raises:
        StoreAwayError: the store does not answer, or refuses.
    """
    key = f"{RESERVED}probe/{secrets.token_hex(8)}"
    calls.run(lambda: obstore.put(store, key, _CONTENT, mode="create"))
    try:
        creates_once = _is_refused(calls, lambda: obstore.put(store, key, _CONTENT, mode="create"))
        other: UpdateVersion = {"e_tag": '"00000000000000000000000000000000"'}
        refuses_overwriting = _is_refused(
            calls, lambda: obstore.put(store, key, _CONTENT, mode=other)
        )
        with blobs.open(key) as stored:
            stored.seek(3)
            reads_ranges = stored.read(4) == _CONTENT[3:7]
        pages = obstore.list(store)  # pyright: ignore[reportUnknownMemberType]
        listed = calls.run(lambda: [one["path"] for page in pages for one in page])
    finally:
        blobs.delete(key)
    return StoreConditions(
        creates_once=creates_once,
        refuses_overwriting=refuses_overwriting,
        reads_ranges=reads_ranges,
        lists=key in listed,
        deletes=not _exists(blobs, key),
    )


def _is_refused(calls: Calls, act: Callable[[], object]) -> bool:
    try:
        calls.run(act)
    except (AlreadyExistsError, PreconditionError, NotSupportedError, AbsentError):
        return True
    return False


def _exists(blobs: BlobStore, key: str) -> bool:
    try:
        blobs.open(key).close()
    except BlobNotFoundError:
        return False
    return True
