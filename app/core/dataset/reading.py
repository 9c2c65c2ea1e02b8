"""Reads the examples of a checked file, for training and for previews."""

import gzip
from collections.abc import Collection, Iterator
from itertools import islice
from typing import BinaryIO, cast

from app.core.dataset.file_kinds import HEAD_BYTES, FileKind, find_kind
from app.core.dataset.formats import BYTE_ORDER_MARK, ParsedExample
from app.core.dataset.rows.parsing import parse_line
from app.core.dataset.tables.rows import as_line, read_rows


def read_examples(
    source: BinaryIO, *, only: Collection[int] | None = None
) -> Iterator[tuple[int, ParsedExample]]:
    """Yield the number of the line or row, from 1, and its example, for all of a checked file.

    Args:
        source: the file, at its first byte.
        only: numbers of the lines to read; the others are passed over. None for all.

    Raises:
        LineError: a line is invalid, which should have been found before.
    """
    lines = enumerate(_lines_of(source), start=1)
    if only is not None:
        lines = ((n, line) for n, line in islice(lines, max(only, default=0)) if n in only)
    for number, line in lines:
        content = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if content.strip():
            yield number, parse_line(content)[1]


def _lines_of(source: BinaryIO) -> Iterator[bytes]:
    kind = find_kind(source.read(HEAD_BYTES))
    source.seek(0)
    if kind.is_table:
        return map(as_line, read_rows(source, kind))
    if kind is FileKind.GZIP:
        return iter(cast("BinaryIO", gzip.GzipFile(fileobj=source)))
    return iter(source)
