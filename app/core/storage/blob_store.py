"""Interface of blob stores. The suite `tests/conformance` tests every implementation."""

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from app.core.errors import StoreAwayError

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


def delete_blobs(store: BlobStore, keys: Iterable[str]) -> None:
    """Delete blobs, once the transaction that deleted their rows is committed.

    A crash in between leaves bytes that no row names, which `app.core.orphans` deletes later. The
    opposite order could leave rows whose bytes are gone.
    """
    try:
        for key in keys:
            store.delete(key)
    except StoreAwayError as error:
        logger.warning("blobs are left to the next search for orphans: %s", error.for_operator)


@contextlib.contextmanager
def stored(store: BlobStore, key: str, scratch: Path) -> Generator[None]:
    """Put a blob, and delete it again if its row cannot be written inside the `with` block.

    The bytes are in the store before their row exists. A crash in between leaves bytes that no row
    names, never a row without bytes.
    """
    store.put(key, scratch)
    try:
        yield
    except Exception:  # such as a busy database
        delete_blobs(store, [key])
        raise
