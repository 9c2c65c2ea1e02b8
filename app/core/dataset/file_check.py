"""Checks an uploaded file of any kind while its bytes arrive."""

from app.core.dataset.checker import DatasetChecker, DatasetSummary
from app.core.dataset.file_kinds import HEAD_BYTES, FileKind, find_kind
from app.core.dataset.formats import LineError
from app.core.dataset.gunzip import ExpansionLimit, Gunzip


class FileChecker:
    """Checks a streamed file. Memory does not grow with the file.

    A table cannot be checked before all of it is there. Its summary stays empty, and `table` says
    that `check_in_process` is to check it.

    Args:
        is_compressed: whether the bytes come out of a compressed file, which must be JSONL.
    """

    def __init__(self, *, is_compressed: bool = False) -> None:
        self._is_compressed = is_compressed
        self._head: bytearray | None = bytearray()
        """The first bytes, until there are enough to know the kind. None from then on."""
        self._kind = FileKind.JSONL
        self._lines = DatasetChecker()
        self._gunzip = Gunzip(ExpansionLimit())
        self._content: FileChecker | None = None
        """Checks the content of a compressed file."""

    @property
    def table(self) -> FileKind | None:
        """The kind of a file that has rows and columns, once it is known."""
        return self._kind if self._kind.is_table else None

    @property
    def has_stopped(self) -> bool:
        """Whether the file is refused, so that the rest of it is not checked."""
        return self._lines.has_stopped or (self._content is not None and self._content.has_stopped)

    def feed(self, chunk: bytes) -> None:
        """Check the next bytes of the file."""
        if self._head is None:
            self._feed(chunk)
            return
        self._head += chunk
        if len(self._head) >= HEAD_BYTES:
            self._settle_kind(self._head)

    def finish(self) -> DatasetSummary:
        """Check what is left after the last byte, and return the result for the whole file."""
        if self._head is not None:
            self._settle_kind(self._head)
        if self.table and not self.has_stopped:
            return DatasetSummary()
        if self._content is None:
            return self._lines.finish()
        if not self.has_stopped:
            try:
                self._gunzip.finish()
            except LineError as error:
                self._content.stop(error)
        return self._content.finish()

    def stop(self, error: LineError) -> None:
        """Report a problem because of which the rest of the file cannot be read."""
        if self._head is not None:
            self._settle_kind(self._head)
        self._lines.stop(error)

    def _settle_kind(self, head: bytearray) -> None:
        self._head = None
        try:
            self._kind = find_kind(bytes(head[:HEAD_BYTES]))
            if self._is_compressed and self._kind is not FileKind.JSONL:
                self._kind = FileKind.JSONL
                message = "Only JSONL may be compressed with gzip. Upload the file inside as it is."
                self.stop(LineError("unsupported_file", message))
        except LineError as error:
            self.stop(error)
        if self._kind is FileKind.GZIP:
            self._content = FileChecker(is_compressed=True)
        self._feed(bytes(head))

    def _feed(self, chunk: bytes) -> None:
        if self.has_stopped or self.table:
            return
        if self._content is None:
            self._lines.feed(chunk)
            return
        try:
            for piece in self._gunzip.expand(chunk):
                self._content.feed(piece)
                if self.has_stopped:
                    return
        except LineError as error:
            self._content.stop(error)
