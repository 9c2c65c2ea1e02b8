"""Reads CSV and Parquet as rows, which are the objects that lines of JSONL have.

The API must not import this module, because pyarrow reads hostile files in native code: a process
of its own reads them, see `check.py`. Training reads them in its sandbox.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TextIO

from app.core import strict_json
from app.core.dataset.file_kinds import HEAD_BYTES, FileKind, find_delimiter
from app.core.dataset.formats import BYTE_ORDER_MARK, LineError
from app.core.dataset.limits import MAX_LINE_BYTES
from app.core.dataset.rows.fields import is_list, is_object, together, unknown_fields
from app.core.dataset.rows.parsing import fields_of, find_format

Cells = Sequence[Any]
"""A row of a table: a value for each of its columns."""

Row = dict[str, Any]
"""A row by the names of the columns."""

_JSON_COLUMNS = frozenset({"messages", "conversations", "tools", "functions"})
"""Columns whose cells may be JSON text, because CSV has no lists."""


def read_rows(source: BinaryIO, kind: FileKind) -> Iterator[Row]:
    """Yield every row of a table, from its first byte.

    Raises:
        LineError: the columns have no format, or the row after the last one cannot be read.
    """
    columns, rows = read_table(source, kind)
    return (as_example(dict(zip(columns, cells, strict=True))) for cells in rows)


def read_table(source: BinaryIO, kind: FileKind) -> tuple[list[str], Iterator[Cells]]:
    """The columns of a table and its rows, from its first byte. It closes the source of CSV.

    Raises:
        LineError: the columns have no format. The iterator raises it where the row after the last
            one cannot be read.
    """
    if kind is FileKind.CSV:
        rows = _read_csv(source)
        columns = next(rows)
        rows = _whole_rows(rows, len(columns))
    else:
        from app.core.dataset.tables.parquet import read_parquet  # noqa: PLC0415 - needs pyarrow

        columns, rows = read_parquet(source)
    check_columns(columns)
    return columns, rows


def check_columns(columns: Sequence[str]) -> None:
    """Check that the columns are the fields of one format.

    Raises:
        LineError: they are not.
    """
    try:
        format_ = find_format(dict.fromkeys(columns))
    except LineError as error:
        names = ", ".join(repr(name[:40]) for name in columns[:5])
        message = f"The columns {names} are not those of one format. Rename or remove columns."
        raise LineError("unknown_format", message) from error
    what = f"the {format_} format"
    errors = unknown_fields(dict.fromkeys(columns), fields_of(format_), what)
    if errors:
        raise together(errors)
    if len(set(columns)) < len(columns):
        raise LineError("unknown_format", "Two columns have the same name. Remove one.")


def as_line(row: Row) -> bytes:
    """The line of JSONL that is the same example as a row."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def as_example(row: Row) -> Row:
    """The row with values in the place of JSON, and without what is null inside of values.

    Raises:
        LineError: a cell that must be JSON is not.
    """
    return {name: _value(name, cell) for name, cell in row.items()}


def _value(column: str, cell: Any) -> Any:
    """A cell as JSON has it. Fields that are null are left out, because structs have them all."""
    if not isinstance(cell, str):
        return _without_nulls(cell)
    if column not in _JSON_COLUMNS:
        return cell
    if not cell:
        return None
    try:
        return strict_json.loads(cell.encode())
    except strict_json.StrictJsonError as error:
        message = f"This cell is not valid JSON: {error}."
        raise LineError("invalid_json", message, column) from error


def _without_nulls(value: Any) -> Any:
    if is_object(value):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if is_list(value) else value


def _read_csv(source: BinaryIO) -> Iterator[list[str]]:
    """The header and the rows."""
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = find_delimiter(source.read(HEAD_BYTES).removeprefix(BYTE_ORDER_MARK))
    source.seek(0)
    try:
        with io.TextIOWrapper(source, encoding="utf-8-sig", newline="") as text:
            yield from csv.reader(_short_lines(text), delimiter=delimiter or ",", strict=True)
    except csv.Error as error:
        message = f"This row is not valid CSV: {error}. Write the file with a CSV library."
        raise LineError("invalid_csv", message) from error
    except UnicodeDecodeError as error:
        message = "The file is not UTF-8 from about this row on. Save it as UTF-8."
        raise LineError("not_utf8", message) from error


def _whole_rows(rows: Iterable[list[str]], columns: int) -> Iterator[list[str]]:
    for cells in rows:
        if not cells:  # a blank line
            continue
        if len(cells) != columns:
            message = f"This row has {len(cells)} cells, and the header has {columns}."
            advice = "Quote cells that have delimiters or line ends in them."
            raise LineError("wrong_cell_count", f"{message} {advice}")
        yield cells


def _short_lines(source: TextIO) -> Iterator[str]:
    while line := source.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            message = f"This row is longer than {MAX_LINE_BYTES // 2**20} MiB. Split the example."
            raise LineError("line_too_long", message)
        yield line
