"""Counts what the API asks of the blob store, and notes when that is away."""

from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from app.api.metrics import RequestMetrics
from app.core.clock import steady_s
from app.core.errors import BlobNotFoundError, StoreAwayError
from app.core.storage.blob_store import BlobStore, StoreConditions
from app.core.storage.forwarding import ForwardingBlobStore

_REMEMBERED_S = 60.0
"""Time for which a failure counts if nothing is asked of the store meanwhile, in seconds."""


class ObservedStore(ForwardingBlobStore):
    """A `BlobStore` whose requests are counted."""

    def __init__(self, store: BlobStore, metrics: RequestMetrics) -> None:
        super().__init__(store)
        self._metrics = metrics
        self._failed_at_s = float("-inf")

    @property
    def is_away(self) -> bool:
        """Whether the last request has failed, less than a minute ago. Asks the store nothing."""
        return steady_s() - self._failed_at_s < _REMEMBERED_S

    def put(self, key: str, scratch: Path) -> None:
        with self._observed("put"):
            super().put(key, scratch)

    def open(self, key: str) -> BufferedReader:
        with self._observed("open"):
            return super().open(key)

    def delete(self, key: str) -> None:
        with self._observed("delete"):
            super().delete(key)

    def probe_conditions(self) -> StoreConditions | None:
        with self._observed("probe"):
            return super().probe_conditions()

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
