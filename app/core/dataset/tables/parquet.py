# pyright: standard
"""Reads Parquet row by row, in memory that does not grow with the file."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from app.core.dataset.formats import LineError
from app.core.dataset.limits import MAX_DEPTH, MAX_EXPANDED_BYTES

MAX_ROW_GROUP_BYTES = 512 * 1024**2
"""Maximum size of a row group. Pages of one are decoded together, so it bounds the memory."""

_MAX_COLUMNS = 1000
_METADATA_BYTES = 16 * 1024**2
_BATCH_BYTES = 4 * 1024**2
_MAX_BATCH_ROWS = 1024

_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for a damaged file, and for names in it that are not UTF-8."""

_SCALARS = (
    types.is_string,
    types.is_large_string,
    types.is_integer,
    types.is_floating,
    types.is_boolean,
    types.is_null,
)
_LISTS = (types.is_list, types.is_large_list, types.is_fixed_size_list)


def read_parquet(
    source: BinaryIO, *, max_row_group_bytes: int = MAX_ROW_GROUP_BYTES
) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """The names of a file's columns, and its rows, each with a value for every column.

    Raises:
        LineError: the file is damaged, too large, or has a column that cannot be JSON. The
            iterator raises it too, for the row after the last one.
    """
    try:
        file = pq.ParquetFile(
            source,
            buffer_size=1024**2,
            pre_buffer=False,
            thrift_string_size_limit=_METADATA_BYTES,
            thrift_container_size_limit=_METADATA_BYTES // 16,
            schema_depth_limit=3 * MAX_DEPTH,
        )
        _check_sizes(file.metadata, max_row_group_bytes)
        for field in file.schema_arrow:
            _check_type(field.type, field.name)
        return list(file.schema_arrow.names), _read_row_groups(file)
    except _UNREADABLE as error:
        raise _unreadable(error) from error


def _read_row_groups(file: pq.ParquetFile) -> Iterator[tuple[Any, ...]]:
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
        rows = min(max(1, _BATCH_BYTES // row_bytes), _MAX_BATCH_ROWS)
        try:
            for batch in file.iter_batches(rows, row_groups=[index], use_threads=False):
                yield from _rows_of(batch)
        except _UNREADABLE as error:
            raise _unreadable(error) from error


def _rows_of(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    try:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            yield tuple(
                _value(column[row], name)
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            )


def _value(value: pa.Scalar, column: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        message = f"This cell is not UTF-8: {error.reason}. Write it as UTF-8."
        raise LineError("not_utf8", message, column[:80]) from error


def _check_sizes(metadata: pq.FileMetaData, max_row_group_bytes: int) -> None:
    if metadata.num_columns > _MAX_COLUMNS:
        message = f"The file has {metadata.num_columns:,} columns; the limit is {_MAX_COLUMNS:,}."
        raise LineError("table_too_large", message)
    total = 0
    for index in range(metadata.num_row_groups):
        size = metadata.row_group(index).total_byte_size
        total += size
        if size > max_row_group_bytes:
            raise LineError(
                "table_too_large",
                f"Row group {index + 1} has {size // 2**20:,} MiB; the limit is "
                f"{max_row_group_bytes // 2**20:,} MiB. Write smaller ones, for example with "
                "row_group_size=10_000.",
            )
    if total > MAX_EXPANDED_BYTES:
        message = (
            f"The file has more than {MAX_EXPANDED_BYTES // 2**20:,} MiB of content. Split it."
        )
        raise LineError("expands_too_much", message)


def _check_type(type_: pa.DataType, path: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        message = f"This column is nested more than {MAX_DEPTH} levels deep. Make it flatter."
        raise LineError("too_deep", message, path[:80])
    if types.is_dictionary(type_) or any(is_list(type_) for is_list in _LISTS):
        _check_type(type_.value_type, path, depth + 1)
    elif types.is_struct(type_):
        for field in type_:
            _check_type(field.type, f"{path}.{field.name}", depth + 1)
    elif not any(is_scalar(type_) for is_scalar in _SCALARS):
        message = f"This column has the type {type_!s:.80}. Write its values as strings."
        raise LineError("wrong_type", message, path[:80])


def _unreadable(error: Exception) -> LineError:
    if isinstance(error, MemoryError):
        message = "The Parquet file needs too much memory. Write smaller row groups."
        return LineError("table_too_large", message)
    why = " ".join(str(error).split())[:200].rstrip(".")
    return LineError("damaged_file", f"The Parquet file cannot be read: {why}. Write it again.")
