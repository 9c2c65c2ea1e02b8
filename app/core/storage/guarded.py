"""A store that asks whether the installation has moved before it calls a blob missing."""

from collections.abc import Callable
from io import BufferedReader

from app.core.errors import BlobNotFoundError, StoreMovedError
from app.core.storage.blob_store import BlobStore
from app.core.storage.forwarding import ForwardingBlobStore


class GuardedBlobStore(ForwardingBlobStore):
    """A `BlobStore` for which a missing blob means that it is gone, and never that it is elsewhere.

    Args:
        store: the store that is guarded.
        is_moved: asks the database whether blobs may be in a store that this process does not
            read.
    """

    def __init__(self, store: BlobStore, is_moved: Callable[[], bool]) -> None:
        super().__init__(store)
        self._is_moved = is_moved

    def open(self, key: str) -> BufferedReader:
        """The blob from its first byte, as `BlobStore.open` has it.

        Raises:
            BlobNotFoundError: no store of the installation has it.
            StoreMovedError: another store may have it.
        """
        try:
            return super().open(key)
        except BlobNotFoundError:
            if self._is_moved():
                raise StoreMovedError from None
            raise
