"""Where bytes live. One conformance suite, `tests/conformance`, holds for every store."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What a store knows of a blob without reading it."""

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
        """Make the file at `scratch` the blob `key`, whole and durable, or not at all.

        Args:
            scratch: from `scratch_file`, with all its bytes written; it is gone afterwards.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """The blob from its first byte, seekable; the caller closes it.

        Raises:
            BlobNotFoundError: no blob has this key.
        """
        ...

    def delete(self, key: str) -> None:
        """Free its bytes. A key without a blob is not an error: deleting again is allowed."""
        ...

    def list_all(self) -> Iterator[StoredBlob]:
        """Every blob, in no order, and in little memory however many there are.

        Others may put and delete meanwhile: of what they touch, some is listed and some is not.
        """
        ...

    def list_scratch(self) -> Iterator[Path]:
        """The scratch files there are, those that are being written at this moment included."""
        ...
