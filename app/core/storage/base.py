"""Where bytes live. One conformance suite, `tests/conformance`, holds for every store."""

from pathlib import Path
from typing import BinaryIO, Protocol


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
