"""The id of a store, in a blob of its own: it tells one store from another, whatever its URL."""

from app.core.errors import BlobNotFoundError
from app.core.storage.blob_store import MARKER_KEY, BlobStore

_MAX_BYTES = 200


def read_marker(store: BlobStore) -> str | None:
    """Id of a store. None if it has never belonged to an installation.

    Raises:
        StoreAwayError: the store does not answer.
    """
    try:
        with store.open(MARKER_KEY) as marker:
            return marker.read(_MAX_BYTES).decode("ascii", "replace").strip() or None
    except BlobNotFoundError:
        return None


def write_marker(store: BlobStore, store_id: str) -> None:
    """Give a store its id.

    Raises:
        StoreAwayError: the store does not answer.
    """
    scratch = store.scratch_file()
    scratch.write_text(f"{store_id}\n", "ascii")
    store.put(MARKER_KEY, scratch)
