"""A store that asks whether the installation has moved before it calls a blob missing."""

from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from app.core.errors import BlobNotFoundError, StoreMovedError
from app.core.storage.blob_store import BlobStore, StoreConditions, StoredBlob


class GuardedBlobStore:
    """A `BlobStore` for which a missing blob means that it is gone, and never that it is elsewhere.

    Args:
        store: the store that is guarded.
        is_moved: asks the database whether blobs may be in a store that this process does not
            read.
    """

    def __init__(self, store: BlobStore, is_moved: Callable[[], bool]) -> None:
        self._store = store
        self._is_moved = is_moved

    def __str__(self) -> str:
        return str(self._store)

    def scratch_file(self) -> Path:
        return self._store.scratch_file()

    def put(self, key: str, scratch: Path) -> None:
        self._store.put(key, scratch)

    def open(self, key: str) -> BufferedReader:
        """The blob from its first byte, as `BlobStore.open` has it.

        Raises:
            BlobNotFoundError: no store of the installation has it.
            StoreMovedError: another store may have it.
        """
        try:
            return self._store.open(key)
        except BlobNotFoundError:
            if self._is_moved():
                raise StoreMovedError from None
            raise

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def list_all(self) -> Iterator[StoredBlob]:
        return self._store.list_all()

    def list_scratch(self) -> Iterator[Path]:
        return self._store.list_scratch()

    def download_url(
        self, key: str, *, filename: str, media_type: str, lifetime_s: int
    ) -> str | None:
        return self._store.download_url(
            key, filename=filename, media_type=media_type, lifetime_s=lifetime_s
        )

    def collect_stale(self, *, older_than_s: float) -> int | None:
        return self._store.collect_stale(older_than_s=older_than_s)

    def probe_conditions(self) -> StoreConditions | None:
        return self._store.probe_conditions()
