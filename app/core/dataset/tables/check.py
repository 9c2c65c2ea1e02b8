"""Checks a table in a process of its own, with limits on memory and time.

It knows only the file that it is told to check, and prints a `DatasetSummary` as JSON:

    python -m app.core.dataset.tables.check KIND PATH
"""

import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from app.core.dataset.checker import DatasetChecker, DatasetSummary
from app.core.dataset.file_kinds import FileKind
from app.core.dataset.formats import LineError
from app.core.dataset.gunzip import ExpansionLimit
from app.core.dataset.tables.process import CPU_S, MEMORY_BYTES
from app.core.dataset.tables.rows import Cells, Row, as_example, as_line, read_table

_BATCH_ROWS = 16
"""Number of rows that are in memory at once, each of which may have a few times 8 MiB."""

_NICENESS = 10
"""So that the API, which answers others meanwhile, is scheduled first."""


def check_table(path: Path, kind: FileKind) -> DatasetSummary:
    """Check every row as a line of JSONL is checked, up to the first that cannot be read."""
    checker = DatasetChecker()
    limit = ExpansionLimit()
    compressed = path.stat().st_size
    try:
        with path.open("rb") as source:
            for size in _check_rows(checker, *read_table(source, kind)):
                limit.add(size, compressed=compressed)
                if checker.has_stopped:
                    break
    except LineError as error:
        checker.stop(error)
    except (MemoryError, RecursionError):
        checker.stop(LineError("table_too_large", "This row needs too much memory. Split it."))
    except ModuleNotFoundError:
        checker.stop(
            LineError(
                "unsupported_file",
                "The file is Parquet, which this service cannot read, because pyarrow is not "
                "installed beside it. Upload JSONL or CSV, or install tunery[worker] there.",
            )
        )
    return checker.finish()


def _check_rows(
    checker: DatasetChecker, columns: Sequence[str], rows: Iterable[Cells]
) -> Iterator[int]:
    """Check rows, and yield how large they are."""
    for batch in filter(None, _in_batches(rows)):
        cells = dict(zip(columns, zip(*batch, strict=True), strict=True))
        if size := checker.feed_plain_rows(cells):
            yield size
            continue
        for row in batch:
            yield _check_row(checker, dict(zip(columns, row, strict=True)))


def _check_row(checker: DatasetChecker, row: Row) -> int:
    if size := checker.feed_plain_row(row):
        return size
    example = as_example(row)
    if size := checker.feed_plain_row(example):
        return size
    line = as_line(example)
    checker.feed(line)
    return len(line)


def _in_batches(rows: Iterable[Cells]) -> Iterator[list[Cells]]:
    """Group rows, so that those before an error come before it. The last group may be empty."""
    batch: list[Cells] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH_ROWS:
                yield batch
                batch = []
    except Exception:
        yield batch
        raise
    yield batch


def main(arguments: list[str]) -> None:
    kind, path = arguments
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    summary = check_table(Path(path), FileKind(kind))
    sys.stdout.buffer.write(TypeAdapter(DatasetSummary).dump_json(summary))


if __name__ == "__main__":
    main(sys.argv[1:])
