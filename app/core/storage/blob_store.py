"""Interface of blob stores. The suite `tests/conformance` tests every implementation."""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

MARKER_KEY = "tunery-store"
"""Key of the blob that holds the id of the store. No row names it, and no list shows it."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What a store knows about a blob without reading it."""

    key: str
    bytes: int
    age_s: float
    """Seconds since its last byte was written."""


class BlobStore(Protocol):
    """Immutable byte strings by key. A key is a relative path of server-made parts."""

    def scratch_file(self) -> Path:
        """A path that does not exist yet, at which a file to `put` can be written."""
        ...

    def put(self, key: str, scratch: Path) -> None:
        """Make the file at `scratch` the blob `key`: completely and durably, or not at all.

        Args:
            scratch: from `scratch_file`, with all its bytes written; it is gone afterwards.
        """
        ...

    def open(self, key: str) -> BufferedReader:
        """The blob from its first byte, seekable; the caller closes it.

        Raises:
            BlobNotFoundError: no blob has this key.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete a blob. Does nothing if no blob has this key."""
        ...

    def list_all(self) -> Iterator[StoredBlob]:
        """Every blob but the marker, in no order, and in little memory however many there are.

        Other processes may put and delete blobs meanwhile. Such a blob may be listed or not.
        """
        ...

    def list_scratch(self) -> Iterator[Path]:
        """Every scratch file, including those that are being written at this moment."""
        ...


def delete_blobs(store: BlobStore, keys: Iterable[str]) -> None:
    """Delete blobs, once the transaction that deleted their rows is committed.

    A crash in between leaves bytes that no row names, which `app.core.orphans` deletes later. The
    opposite order could leave rows whose bytes are gone.
    """
    for key in keys:
        store.delete(key)


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
        store.delete(key)
        raise
