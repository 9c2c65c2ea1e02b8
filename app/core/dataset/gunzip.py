"""Decompresses gzip in constant memory, and refuses what expands too much."""

import zlib
from collections.abc import Iterator

from app.core.dataset.formats import LineError
from app.core.dataset.limits import MAX_EXPANDED_BYTES, MAX_EXPANSION, MIN_EXPANSION_BYTES

_PIECE_BYTES = 1024 * 1024
_GZIP_FORMAT = 16 + zlib.MAX_WBITS


class ExpansionLimit:
    """Limits how many bytes a compressed file may become.

    Args:
        max_bytes: maximum size of the content.
    """

    def __init__(self, *, max_bytes: int = MAX_EXPANDED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._expanded = 0

    def add(self, expanded: int, *, compressed: int) -> None:
        """Count more of the content.

        Args:
            expanded: bytes that were added.
            compressed: bytes of the file that the content so far came from.

        Raises:
            LineError: the content is too large, or so is its ratio to the file.
        """
        self._expanded += expanded
        if self._expanded > self._max_bytes:
            raise LineError(
                "expands_too_much",
                f"The file has more than {self._max_bytes // 2**20:,} MiB of content. Split it.",
            )
        if self._expanded > max(MIN_EXPANSION_BYTES, MAX_EXPANSION * compressed):
            raise LineError(
                "expands_too_much",
                f"The file's content is more than {MAX_EXPANSION} times as large as the file. "
                "Upload it uncompressed.",
            )


class Gunzip:
    """A stream of gzip, which may consist of several members."""

    def __init__(self, limit: ExpansionLimit) -> None:
        self._limit = limit
        self._member = zlib.decompressobj(_GZIP_FORMAT)
        self._compressed = 0

    def expand(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the content of the next bytes, in pieces of at most a MiB.

        Raises:
            LineError: they are not gzip, or expand too much.
        """
        self._compressed += len(chunk)
        piece = b""
        while chunk or len(piece) == _PIECE_BYTES:
            if self._member.eof:
                chunk = chunk.lstrip(b"\0")  # padding between members, which gzip allows
                if not chunk:
                    return
                self._member = zlib.decompressobj(_GZIP_FORMAT)
            try:
                piece = self._member.decompress(chunk, _PIECE_BYTES)
            except zlib.error as error:
                raise _damaged("it cannot be decompressed") from error
            chunk = self._member.unused_data or self._member.unconsumed_tail
            self._limit.add(len(piece), compressed=self._compressed)
            if piece:
                yield piece

    def finish(self) -> None:
        """Check that nothing is missing.

        Raises:
            LineError: the last member has no end.
        """
        if not self._member.eof:
            raise _damaged("its end is missing")


def _damaged(why: str) -> LineError:
    return LineError(
        "damaged_file", f"The gzip file is damaged: {why}. Compress and send it again."
    )
