"""Uploads that wait for a blob store that is away."""

import logging
import time
from pathlib import Path

from app.core.errors import StoreAwayError
from app.core.storage.blob_store import BlobStore
from app.core.storage.forwarding import ForwardingBlobStore
from worker.attempt.lease_keeper import LeaseKeeper
from worker.launch.launcher import Signal

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Pause between two tries of an upload, in seconds. A try itself waits for as long as
`app.core.storage.s3.calls` says."""


class PatientStore(ForwardingBlobStore):
    """Puts what a child has made, for as long as the lease lasts and nobody wants the job back.

    The child trains on meanwhile, and the lease is renewed by another thread.
    """

    def __init__(self, store: BlobStore, keeper: LeaseKeeper) -> None:
        super().__init__(store)
        self._keeper = keeper

    def put(self, key: str, scratch: Path) -> None:
        """Put a blob.

        Raises:
            StoreAwayError: the store is away, and the job must not wait any longer.
        """
        while True:
            try:
                return super().put(key, scratch)
            except StoreAwayError as error:
                if self._keeper.requested_signal() is not Signal.CONTINUE:
                    raise
                logger.warning("trying again: %s", error.for_operator)
                time.sleep(PAUSE_S)
