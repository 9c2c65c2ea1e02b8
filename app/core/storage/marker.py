"""The marker of a blob store, which says to which installation it belongs."""

import json

from app.core.errors import BlobExistsError, BlobNotFoundError
from app.core.storage.blob_store import RESERVED, BlobStore

MARKER_KEY = f"{RESERVED}tunery-store.json"
_MAX_BYTES = 4096


def read_marker(store: BlobStore) -> str | None:
    """Id of the store. None if it has none.

    Raises:
        StoreAwayError: the store does not answer, or refuses.
    """
    try:
        with store.open(MARKER_KEY) as marker:
            described = json.loads(marker.read(_MAX_BYTES))
    except BlobNotFoundError:
        return None
    return str(described["store_id"])


def write_marker(store: BlobStore, store_id: str) -> None:
    """Give the store an id. A store that refuses to replace another marker keeps that.

    Raises:
        StoreAwayError: the store does not answer, or refuses.
    """
    scratch = store.scratch_file()
    try:
        scratch.write_text(json.dumps({"store_id": store_id}), encoding="utf-8")
        store.put(MARKER_KEY, scratch)
    except BlobExistsError:
        return
    finally:
        scratch.unlink(missing_ok=True)
