"""The store of an installation that moves: its present store, and the previous one behind it."""

from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path

from app.core.errors import BlobNotFoundError
from app.core.storage.blob_store import BlobStore, StoredBlob
from app.core.storage.forwarding import ForwardingBlobStore


class MovingBlobStore(ForwardingBlobStore):
    """A `BlobStore` that puts into one store and also reads from another.

    A blob may be in both, with the same bytes, because no key is ever used for other bytes.

    Args:
        present: the store that the installation has moved to.
        previous: the store that it is moving away from.
    """

    def __init__(self, present: BlobStore, previous: BlobStore) -> None:
        super().__init__(present)
        self.present = present
        self.previous = previous

    def __str__(self) -> str:
        return f"{self.present}, and {self.previous} behind it"

    def open(self, key: str) -> BufferedReader:
        for store in (self.present, self.previous):
            try:
                return store.open(key)
            except BlobNotFoundError:
                continue
        # Between the two looks, `tunery store copy` may have copied it, and somebody may then have
        # emptied the previous store.
        return self.present.open(key)

    def delete(self, key: str) -> None:
        try:
            self.previous.delete(key)
        finally:
            self.present.delete(key)

    def list_all(self) -> Iterator[StoredBlob]:
        """A blob that is in both stores is listed twice."""
        return chain(self.present.list_all(), self.previous.list_all())

    def download_url(
        self, key: str, *, filename: str, media_type: str, lifetime_s: int
    ) -> str | None:
        """None for a blob that is not in the present store yet: the API sends that itself."""
        try:
            self.present.open(key).close()
        except BlobNotFoundError:
            return None
        return super().download_url(
            key, filename=filename, media_type=media_type, lifetime_s=lifetime_s
        )

    def collect_stale(self, *, older_than_s: float) -> int | None:
        counts = [
            store.collect_stale(older_than_s=older_than_s)
            for store in (self.present, self.previous)
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def list_scratch(self) -> Iterator[Path]:
        # Both stores may keep their scratch files in the data directory.
        paths = chain(self.present.list_scratch(), self.previous.list_scratch())
        return iter(dict.fromkeys(paths))
