"""Tells from its first bytes what a file is, or says in one sentence why it cannot be used."""

import csv
import io
from enum import StrEnum

from app.core.dataset.formats import BYTE_ORDER_MARK, LineError
from app.core.dataset.rows.parsing import FIELDS

HEAD_BYTES = 16 * 1024
"""How much of a file is looked at. The header of a CSV file must be shorter."""


class FileKind(StrEnum):
    JSONL = "jsonl"
    GZIP = "gzip"
    PARQUET = "parquet"
    CSV = "csv"

    @property
    def is_table(self) -> bool:
        """Whether the file has rows and columns, and can be read only as a whole."""
        return self in (FileKind.PARQUET, FileKind.CSV)


_UNZIP = "Unpack it and upload the file inside; JSONL may be compressed with gzip."
_EXPORT = "Export it as JSONL, CSV or Parquet."
_FOREIGN_FILES = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", _EXPORT),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook or another Office document", _EXPORT),
    (b"%PDF", "a PDF document", _EXPORT),
    (b"ARROW1", "an Arrow or Feather file", _EXPORT),
    (b"SQLite format 3", "a SQLite database", _EXPORT),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNZIP),
    (b"\xfd7zXZ", "compressed with xz", _UNZIP),
    (b"BZh", "compressed with bzip2", _UNZIP),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNZIP),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8."),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8."),
    (b"<", "an HTML or XML document", "If it was downloaded, check that the login succeeded."),
)
"""First bytes of files that people upload by mistake, what they are, and what to do."""


def find_kind(head: bytes) -> FileKind:
    """What a file is that begins so.

    Args:
        head: the first `HEAD_BYTES` bytes of the file, or all if there are fewer.

    Raises:
        LineError: `unsupported_file`.
    """
    if head.startswith(b"\x1f\x8b"):
        return FileKind.GZIP
    if head.startswith(b"PAR1"):
        return FileKind.PARQUET
    for magic, what, advice in _FOREIGN_FILES:
        if head.startswith(magic):
            raise LineError("unsupported_file", f"The file is {what}. {advice}")
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    _refuse_other_json(text)
    return FileKind.CSV if find_delimiter(text) else FileKind.JSONL


def find_delimiter(text: bytes) -> str | None:
    """What separates the cells of a CSV file that begins so. None if it is no CSV file.

    Raises:
        LineError: the file seems to be CSV, but has no column of any format.
    """
    line = text.splitlines()[0].decode("utf-8", "replace") if text else ""
    if line[:1] in ("", "{", "[") or line.isspace():
        return None
    for delimiter in ",;\t":
        cells = next(csv.reader(io.StringIO(line), delimiter=delimiter), list[str]())
        if FIELDS & set(cells):
            return delimiter
        if len(cells) > 1 and all(cell.isidentifier() for cell in cells):
            names = ", ".join(repr(cell[:40]) for cell in cells[:5])
            raise LineError(
                "unsupported_file",
                f"The file seems to be CSV with the columns {names}, which belong to no format. "
                "Rename them, for example to 'prompt' and 'completion'.",
            )
    return None


def _refuse_other_json(text: bytes) -> None:
    opening = text[:1]
    after = text[1:].lstrip(b" \t\r")[:1]
    if opening == b"[" and after in (b"\n", b"{", b""):
        raise LineError(
            "unsupported_file",
            "The file is a JSON array. Write each of its objects on a line of its own, without "
            "the brackets and the commas between them.",
        )
    if opening == b"{" and after in (b"\n", b""):
        raise LineError(
            "unsupported_file",
            "The file is a JSON object over several lines. Write each example as one line.",
        )
