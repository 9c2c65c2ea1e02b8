"""Interface of blob stores. The suite `tests/conformance` tests every implementation."""

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from app.core.errors import OutcomeUnknownError, ServiceError, StoreAwayError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What a store knows about a blob without reading it."""

    key: str
    bytes: int
    age_s: float
    """Seconds since its last byte was written."""


@dataclass(frozen=True, slots=True)
class StoreConditions:
    """What a store on a server was seen to do. Tunery needs the last three."""

    creates_once: bool
    """It refuses to create a blob that exists. Otherwise it overwrites it silently."""
    refuses_overwriting: bool
    """It refuses to replace a blob that is not the one that the request names."""
    reads_ranges: bool
    lists: bool
    deletes: bool


RESERVED = "."
"""What the keys begin with that stores use for themselves and never list."""


class BlobStore(Protocol):
    """Immutable byte strings by key. A key is a relative path of server-made parts.

    Every method that reaches a server raises StoreAwayError if that does not answer or refuses.
    Nothing then follows about what the store holds.
    """

    def scratch_file(self) -> Path:
        """A path that does not exist yet, at which a file to `put` can be written."""
        ...

    def put(self, key: str, scratch: Path) -> None:
        """Make the file at `scratch` the blob `key`: completely and durably, or not at all.

        Every key is put once. What happens to a key that has other bytes depends on the store: it
        has the newer ones afterwards, or the older ones.

        Args:
            scratch: from `scratch_file`, with all its bytes written; it is gone afterwards, unless
                an error is raised.

        Raises:
            BlobExistsError: the store has noticed that the key has other bytes, and keeps them.
            StorageFullError: the store has no room.
        """
        ...

    def open(self, key: str) -> BufferedReader:
        """The blob from its first byte, seekable; the caller closes it.

        Reading from it may raise StoreAwayError as well, and BlobNotFoundError once the blob was
        deleted. Only the reader of a local store has a file descriptor.

        Raises:
            BlobNotFoundError: no blob has this key.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete a blob. Does nothing if no blob has this key."""
        ...

    def list_all(self) -> Iterator[StoredBlob]:
        """Every blob, in no order, and in little memory however many there are.

        After a failure that has passed, a store on a server may list some blobs twice. Other
        processes may put and delete blobs meanwhile. Such a blob may be listed or not.
        """
        ...

    def list_scratch(self) -> Iterator[Path]:
        """Every scratch file, including those that are being written at this moment."""
        ...

    def download_url(
        self, key: str, *, filename: str, media_type: str, lifetime_s: int
    ) -> str | None:
        """A URL at which anybody can download the blob for so long, under this name and type.

        None if the store has no such URLs, or its keys are a role's, which only obstore knows.
        """
        ...

    def collect_stale(self, *, older_than_s: float) -> int | None:
        """Delete what interrupted uploads have left in the store. Returns their number.

        None if the store cannot tell.
        """
        ...

    def probe_conditions(self) -> StoreConditions | None:
        """Try what the store does, with a blob that is deleted again. None for a local store."""
        ...


def delete_blobs(store: BlobStore, keys: Iterable[str]) -> int:
    """Delete blobs, once the transaction that deleted their rows is committed.

    A crash in between leaves bytes that no row names, which `app.core.orphans` deletes later. So
    does a store that is away. The opposite order could leave rows whose bytes are gone.

    Returns:
        How many are still there, because the store is away.
    """
    left = list(keys)
    try:
        while left:
            store.delete(left[-1])
            left.pop()
    except StoreAwayError as error:
        logger.warning("%d blobs are deleted later, as orphans: %s", len(left), error.for_operator)
    return len(left)


@contextlib.contextmanager
def stored(store: BlobStore, blobs: Mapping[str, Path]) -> Generator[None]:
    """Put blobs, and delete them again if their rows cannot be committed inside the `with` block.

    The bytes are in the store before a transaction begins, because a put may take minutes. A crash
    in between leaves bytes that no row names, never a row without bytes.

    Args:
        store: the store.
        blobs: scratch files by the keys that they get.
    """
    try:
        for key, scratch in blobs.items():
            store.put(key, scratch)
    except StoreAwayError:
        raise  # what it may have is deleted later, as an orphan
    except Exception:
        delete_blobs(store, blobs)
        raise
    try:
        yield
    except OutcomeUnknownError:
        raise  # the rows may be there
    except ServiceError:  # such as a busy database
        delete_blobs(store, blobs)
        raise
