"""Keeps a worker from claiming what it cannot do, because the blob store is away."""

from app.core.errors import StoreAwayError
from app.core.storage.blob_store import BlobStore
from app.core.storage.marker import read_marker


class StoreDoubts:
    """Remembers that the store was away, so that no work is claimed before it answers again.

    Otherwise each try at a job would add an event to it that says so.
    """

    def __init__(self) -> None:
        self._is_doubted = False

    def note(self, error: Exception) -> None:
        """Doubt the store if this is why an attempt has ended."""
        self._is_doubted = self._is_doubted or isinstance(error, StoreAwayError)

    def settle(self, store: BlobStore) -> None:
        """Ask the store, if it is in doubt.

        Raises:
            StoreAwayError: it is still away.
        """
        if self._is_doubted:
            read_marker(store)
            self._is_doubted = False
