"""Counts what the API asks of the blob store, and notes when that is away."""

import threading
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
    """A `BlobStore` whose requests are counted.

    A store that is away keeps a request waiting for seconds. While it is, one request at a time
    tries it and the others fail at once, so that no crowd of downloads takes all threads.
    """

    def __init__(self, store: BlobStore, metrics: RequestMetrics) -> None:
        super().__init__(store)
        self._metrics = metrics
        self._failed_at_s = float("-inf")
        self._trying = threading.Lock()

    @property
    def is_away(self) -> bool:
        """Whether the last request has failed, less than a minute ago. Asks the store nothing."""
        return steady_s() - self._failed_at_s < _REMEMBERED_S

    def put(self, key: str, scratch: Path) -> None:
        with self._observed("put"):
            super().put(key, scratch)

    def open(self, key: str) -> BufferedReader:
        with self._one_at_a_time(), self._observed("open"):
            return super().open(key)

    def delete(self, key: str) -> None:
        with self._one_at_a_time(), self._observed("delete"):
            super().delete(key)

    def probe_conditions(self) -> StoreConditions | None:
        with self._observed("probe"):
            return super().probe_conditions()

    @contextmanager
    def _one_at_a_time(self) -> Generator[None]:
        if not self.is_away:
            yield
        elif self._trying.acquire(blocking=False):
            try:
                yield
            finally:
                self._trying.release()
        else:
            raise StoreAwayError(for_operator=f"{self} is away, and another request tries it.")

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
