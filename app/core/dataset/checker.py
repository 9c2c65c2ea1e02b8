"""Checks a streamed dataset and reports its first problems together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.dataset.formats import (
    BYTE_ORDER_MARK,
    MAX_PROBLEMS,
    DatasetFormat,
    LineError,
)
from app.core.dataset.limits import (
    MAX_LINE_BYTES,
    MAX_LINES,
    MAX_VALUES,
    check_example,
    check_size,
)
from app.core.dataset.rows.parsing import parse_line
from app.core.dataset.rows.plain import (
    count_characters,
    count_plain_characters,
    is_plain_line,
    is_plain_row,
)
from app.core.job.child.training_events import DataProblem

_FINAL_CODES = ("unsupported_format",)
"""Problems that the rest of the file shares, so that naming one is enough."""

_MAX_ESCAPED_BYTES = 6
"""Bytes that a character of a text takes at most as JSON."""


@dataclass(slots=True)
class DatasetSummary:
    """Contents of a file, and its problems."""

    format: DatasetFormat | None = None
    examples: int = 0
    uses_tools: bool = False
    problems: list[DataProblem] = field(default_factory=list[DataProblem])
    is_partial: bool = False
    """True if the check stopped before the end of the file, so there may be more problems."""


class DatasetChecker:
    """Checks a streamed dataset, up to its fiftieth problem. Memory does not grow with the file."""

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES, max_lines: int = MAX_LINES) -> None:
        self._max_line_bytes = max_line_bytes
        self._max_lines = max_lines
        self._summary = DatasetSummary()
        self._rest = bytearray()
        self._line_number = 0
        self._blank_since: int | None = None
        self._in_overlong_line = False

    @property
    def has_stopped(self) -> bool:
        """Whether the file is refused, so that the rest of it is not checked."""
        return self._summary.is_partial

    def feed(self, chunk: bytes) -> None:
        """Check the next bytes of the file. A chunk may end in the middle of a line."""
        *lines, rest = chunk.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        for line in lines:
            if self._summary.is_partial:
                return
            self._end_line(line)
        self._rest += rest
        if len(self._rest) > self._max_line_bytes:
            self._in_overlong_line = True
            self._rest.clear()

    def feed_plain_row(self, row: Mapping[str, Any]) -> int:
        """Take a row of a table that is plain and valid, which is quicker than its line of JSON.

        Returns:
            The characters of its texts, or 0 if in any doubt. Then feed its line instead.
        """
        settled = self._summary.format
        if settled is None or not is_plain_row(row, settled):
            return 0
        return self._add_plain(1, count_characters(row))

    def feed_plain_rows(self, columns: Mapping[str, Sequence[Any]]) -> int:
        """Take several rows of a table as `feed_plain_row` takes one, which is quicker still.

        Args:
            columns: the cells of the rows, by the names of the columns.
        """
        settled = self._summary.format
        if settled is None:
            return 0
        rows = len(next(iter(columns.values())))
        return self._add_plain(rows, count_plain_characters(columns, settled))

    def stop(self, error: LineError) -> None:
        """Report a problem because of which the next line, and all after it, cannot be read."""
        if not self.has_stopped:
            for problem in (error, *error.others):
                self._report(self._line_number + 1, problem)
            self._summary.is_partial = True

    def finish(self) -> DatasetSummary:
        """Check what is left after the last byte, and return the result for the whole file."""
        if (self._rest or self._in_overlong_line) and not self.has_stopped:
            self._end_line(bytes(self._rest))
        if self._summary.examples == 0 and not self._summary.problems:
            self._report(
                1, LineError("empty_file", "The file has no examples. Add at least one line.")
            )
        return self._summary

    def _add_plain(self, rows: int, characters: int) -> int:
        """Count rows, unless a line of them may be too long or one too many."""
        is_short = characters * _MAX_ESCAPED_BYTES < self._max_line_bytes // 2
        if not is_short or self._line_number + rows > self._max_lines:
            return 0
        if characters:
            self._line_number += rows
            self._summary.examples += rows
        return characters

    def _end_line(self, line: bytes) -> None:
        self._line_number += 1
        if self._line_number > self._max_lines:
            message = f"A file can have at most {self._max_lines:,} lines. Split it."
            self._report(self._line_number, LineError("too_many_lines", message))
            self._summary.is_partial = True
            return
        if self._in_overlong_line or len(line) > self._max_line_bytes:
            self._in_overlong_line = False
            message = (
                f"This line is longer than {self._max_line_bytes // 2**20} MiB. Split the example, "
                "and write one JSON object per line."
            )
            self._report(self._line_number, LineError("line_too_long", message))
            return
        if self._line_number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line or line.isspace():
            self._blank_since = self._blank_since or self._line_number
            return
        if self._blank_since is not None:
            message = "This line is blank, and examples follow it. Remove it."
            self._report(self._blank_since, LineError("blank_line", message))
            self._blank_since = None
        self._check(line)

    def _check(self, line: bytes) -> None:
        try:
            if len(line) > MAX_VALUES:  # each takes a byte at least
                check_size(line)
            format_ = self._summary.format
            if format_ is not None and is_plain_line(line, format_):
                self._summary.examples += 1
                return
            format_, example = parse_line(line)
            uses_tools = check_example(format_, example)
            self._settle_format(format_)
        except LineError as error:
            for problem in (error, *error.others):
                self._report(self._line_number, problem)
            return
        self._summary.examples += 1
        self._summary.uses_tools |= uses_tools

    def _settle_format(self, format_: DatasetFormat) -> None:
        settled = self._summary.format
        if settled not in (None, format_):
            raise LineError(
                "mixed_formats",
                f"This line is in the {format_} format, but the lines before it are in the "
                f"{settled} format. Use one format per file.",
            )
        self._summary.format = format_

    def _report(self, line: int, error: LineError) -> None:
        problems = self._summary.problems
        if len(problems) < MAX_PROBLEMS:
            problems.append(
                DataProblem(line=line, path=error.path, code=error.code, message=str(error))
            )
        self._summary.is_partial = len(problems) == MAX_PROBLEMS or error.code in _FINAL_CODES
