"""The blob store as an attempt uses it: for as long as somebody wants the job."""

import logging
import time
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from app.core.errors import StoreAwayError
from app.core.storage.blob_store import BlobStore
from app.core.storage.forwarding import ForwardingBlobStore
from worker.attempt.lease_keeper import LeaseKeeper
from worker.launch.launcher import Signal

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Pause between two tries of an upload, in seconds. A try itself waits for as long as
`app.core.storage.s3.calls` says."""


class AttemptStore(ForwardingBlobStore):
    """Waits for a store that is away to put what a child has made, and reads what a child needs.

    The child trains on meanwhile, and the lease is renewed by another thread.
    """

    def __init__(self, store: BlobStore, keeper: LeaseKeeper) -> None:
        super().__init__(store)
        self._keeper = keeper

    def open(self, key: str) -> BufferedReader:
        """As `BlobStore.open`. Each read raises what `LeaseKeeper.require_wanted` does."""
        return BufferedReader(_WantedBytes(super().open(key), self._keeper))

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


class _WantedBytes(RawIOBase):
    """A blob that is read while somebody wants the job. It may take minutes."""

    def __init__(self, source: BufferedReader, keeper: LeaseKeeper) -> None:
        self._source = source
        self._keeper = keeper

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        self._keeper.require_wanted()
        return self._source.readinto1(buffer)

    def close(self) -> None:
        self._source.close()
        super().close()
