"""Reads the examples of a checked file, for training."""

from collections.abc import Iterator
from typing import BinaryIO

from app.core.dataset.formats import BYTE_ORDER_MARK, Example, LineError, PreferenceExample
from app.core.dataset.parsing import parse_line


def read_examples(source: BinaryIO) -> Iterator[tuple[int, Example]]:
    """Yield the line number, from 1, and the example of every line of a checked file.

    Raises:
        LineError: a line is invalid or is a preference, which should have been found before.
    """
    for number, line in enumerate(source, start=1):
        content = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if content.strip():
            yield number, _parse_example(content)


def _parse_example(line: bytes) -> Example:
    example = parse_line(line)[1]
    if isinstance(example, PreferenceExample):
        raise LineError("unsupported_format", "Preferences cannot be trained on yet.")
    return example
