"""A store that passes every call on to another one. A subclass changes what it does differently."""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from app.core.storage.blob_store import BlobStore, StoreConditions, StoredBlob


class ForwardingBlobStore:
    """A `BlobStore` in front of another one."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def __str__(self) -> str:
        return str(self._store)

    def scratch_file(self) -> Path:
        return self._store.scratch_file()

    def put(self, key: str, scratch: Path) -> None:
        self._store.put(key, scratch)

    def open(self, key: str) -> BufferedReader:
        return self._store.open(key)

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
