"""Checks a streamed dataset and reports its first problems together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.core import strict_json
from app.core.dataset.formats import (
    BYTE_ORDER_MARK,
    MAX_PROBLEMS,
    DatasetFormat,
    LineError,
)
from app.core.dataset.limits import (
    MAX_LINE_BYTES,
    MAX_LINES,
    MAX_MESSAGES,
    check_example,
    check_size,
)
from app.core.dataset.rows.parsing import parse_line
from app.core.job.training_events import DataProblem

_FINAL_CODES = ("unsupported_format",)
"""Problems that the rest of the file shares, so that naming one is enough."""

_PLAIN_ROLES = ("user", "assistant", "system")

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
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            if self.has_stopped:
                return
            self._end_line(bytes(self._rest) + end if self._rest else end)
            self._rest.clear()
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
        if settled is None or _find_plain_format_of(row) is not settled:
            return 0
        text = _text_of(row)
        is_short = len(text) * _MAX_ESCAPED_BYTES < self._max_line_bytes // 2
        if "\0" in text or not is_short or self._line_number >= self._max_lines:
            return 0
        self._line_number += 1
        self._summary.examples += 1
        return len(text)

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
            check_size(line)
            plain = find_plain_format(line)
            if plain is not None and plain is self._summary.format:
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


def find_plain_format(line: bytes) -> DatasetFormat | None:
    """Format of a plain example without tools. None if in any doubt.

    An upload of a few hundred MiB has millions of lines, and nearly all of them are plain.
    `parse_line` finds every problem of a line but takes several times as long, so it is called only
    for the other lines. A property test checks that `parse_line` accepts every line that this
    function recognises, as the same format.
    """
    try:
        row = strict_json.loads_quickly(line)
    except ValueError:
        return None
    # Every accepted value is text, so no number can be too large.
    return _find_plain_format_of(row) if row.__class__ is dict else None


def _find_plain_format_of(row: Mapping[str, Any]) -> DatasetFormat | None:
    match len(row):
        case 2 if row.get("prompt").__class__ is str:
            return DatasetFormat.PROMPT_COMPLETION if _is_filled(row.get("completion")) else None
        case 1 if "messages" in row:
            return DatasetFormat.MESSAGES if _is_plain_chat(row["messages"]) else None
        case 1:
            return DatasetFormat.TEXT if _is_filled(row.get("text")) else None
        case 3 if row.get("prompt").__class__ is str:
            is_plain = _is_filled(row.get("chosen")) and _is_filled(row.get("rejected"))
            return DatasetFormat.PREFERENCE if is_plain else None
        case 2 | 3:
            return DatasetFormat.INSTRUCTION if _is_plain_instruction(row) else None
        case _:
            return None


def _is_plain_instruction(row: Mapping[str, Any]) -> bool:
    has_both = _is_filled(row.get("instruction")) and _is_filled(row.get("output"))
    return has_both and (len(row) == 2 or row.get("input").__class__ is str)  # noqa: PLR2004


def _is_filled(value: Any) -> bool:
    return value.__class__ is str and value != ""


def _is_plain_chat(messages: Any) -> bool:
    """Whether each message has just a role and a text, and one is the assistant's."""
    if messages.__class__ is not list or len(messages) > MAX_MESSAGES:
        return False
    has_answer = False
    for message in messages:
        if message.__class__ is not dict or len(message) != 2:  # noqa: PLR2004 - role and content
            return False
        role, content = message.get("role"), message.get("content")
        if content.__class__ is not str or not content or role not in _PLAIN_ROLES:
            return False
        has_answer = has_answer or role == "assistant"
    return has_answer


def _text_of(row: Mapping[str, Any]) -> str:
    """All texts of a plain row."""
    if "messages" in row:
        return "".join(text for message in row["messages"] for text in message.values())
    return "".join(row.values())
