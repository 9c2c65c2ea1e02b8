"""Counts what the API asks of the blob store, and notes when that is away."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from app.api.metrics import RequestMetrics
from app.core.clock import steady_s
from app.core.errors import BlobNotFoundError, StoreAwayError
from app.core.storage.blob_store import BlobStore, StoreConditions, StoredBlob

_REMEMBERED_S = 60.0
"""Time for which a failure counts if nothing is asked of the store meanwhile, in seconds."""


class ObservedStore:
    """A `BlobStore` that another one stands behind."""

    def __init__(self, store: BlobStore, metrics: RequestMetrics) -> None:
        self._store = store
        self._metrics = metrics
        self._failed_at_s = float("-inf")

    def __str__(self) -> str:
        return str(self._store)

    @property
    def is_away(self) -> bool:
        """Whether the last request has failed, less than a minute ago. Asks the store nothing."""
        return steady_s() - self._failed_at_s < _REMEMBERED_S

    def scratch_file(self) -> Path:
        return self._store.scratch_file()

    def put(self, key: str, scratch: Path) -> None:
        with self._observed("put"):
            self._store.put(key, scratch)

    def open(self, key: str) -> BufferedReader:
        with self._observed("open"):
            return self._store.open(key)

    def delete(self, key: str) -> None:
        with self._observed("delete"):
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
        with self._observed("probe"):
            return self._store.probe_conditions()

    @contextmanager
    def _observed(self, operation: str) -> Generator[None]:
        outcome = "ok"
        try:
            yield
        except BlobNotFoundError:
            outcome = "absent"
            raise
        except StoreAwayError:
            outcome = "away"
            raise
        finally:
            self._failed_at_s = steady_s() if outcome == "away" else float("-inf")
            self._metrics.store_requests.labels(operation, outcome).inc()
