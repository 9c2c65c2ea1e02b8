"""Parses a line of an uploaded dataset, or says what is wrong, where, and how to fix it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.core import strict_json
from app.core.dataset.formats import (
    ChatExample,
    DatasetFormat,
    LineError,
    ParsedExample,
    PromptExample,
    TextExample,
)
from app.core.dataset.rows.fields import (
    is_object,
    read_string,
    together,
    unknown_fields,
    without_nulls,
)
from app.core.dataset.rows.foreign import refuse_foreign_row
from app.core.dataset.rows.messages import CHAT_FIELDS, parse_chat
from app.core.dataset.rows.preference import ANSWER_FIELDS, PREFERENCE_FIELDS, parse_preference
from app.core.dataset.rows.sharegpt import SHAREGPT_FIELDS, parse_sharegpt


def parse_line(line: bytes) -> tuple[DatasetFormat, ParsedExample]:
    """Parse one line of a dataset.

    Raises:
        LineError: the line is not a valid example.
    """
    try:
        row = strict_json.loads(line)
    except strict_json.StrictJsonError as error:
        code = "not_utf8" if str(error).startswith("not UTF-8") else "invalid_json"
        raise LineError(code, f"This line is not valid JSON: {error}.") from error
    if not is_object(row):
        raise LineError("not_an_object", 'This line must be a JSON object, as {"text": "..."} is.')
    fields = without_nulls(row)
    refuse_foreign_row(fields)
    format_ = _find_format_of(row, fields)
    shape = _SHAPES[format_]
    errors = unknown_fields(fields, shape.fields, f"the {format_} format")
    example: ParsedExample | None = None
    try:
        example = shape.parse(fields)
    except LineError as error:
        errors += [error, *error.others]
    if example is None or errors:
        raise together(errors)
    return format_, example


def _find_format_of(row: Mapping[str, Any], fields: Mapping[str, Any]) -> DatasetFormat:
    """The format of a row, by all its keys or else by those whose value is not null."""
    try:
        return find_format(row)
    except LineError:
        return find_format(fields)


def find_format(row: Mapping[str, Any]) -> DatasetFormat:
    """The format that an object's keys belong to.

    Raises:
        LineError: they belong to none, or to several.
    """
    hits = {
        format_: found for format_, shape in _SHAPES.items() if (found := shape.marks & row.keys())
    }
    # A format may share some keys with one that explains them all, as `prompt` of a preference.
    formats = [
        format_
        for format_, found in hits.items()
        if not any(
            found <= _SHAPES[other].fields and not theirs <= _SHAPES[format_].fields
            for other, theirs in hits.items()
        )
    ]
    if not formats:
        keys = ", ".join(repr(key[:40]) for key in list(row)[:5]) or "none"
        raise LineError(
            "unknown_format",
            "This line needs the key 'messages', or 'prompt' and 'completion', or 'text', or those "
            f"of another format in docs/files.md. Its keys are: {keys}.",
        )
    if len(formats) > 1:
        names = " and ".join(formats)
        raise LineError("unknown_format", f"This line mixes the formats {names}. Keep one of them.")
    return formats[0]


def _text(row: Mapping[str, Any]) -> TextExample:
    return TextExample(read_string(row, "text"))


def _prompt_and_completion(row: Mapping[str, Any]) -> PromptExample:
    prompt = read_string(row, "prompt", may_be_empty=True)
    return PromptExample(prompt, read_string(row, "completion"))


def _instruction(row: Mapping[str, Any]) -> ChatExample:
    """A chat in which the user gives the instruction and, after a blank line, the input."""
    question = read_string(row, "instruction")
    if row.get("input"):
        question += "\n\n" + read_string(row, "input")
    answer = read_string(row, "output")
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return ChatExample(messages, [False, True])


@dataclass(frozen=True, slots=True)
class _Shape:
    marks: frozenset[str]
    """Fields that only this format has, or that it shares with one that has more of them."""
    fields: frozenset[str]
    parse: Callable[[Mapping[str, Any]], ParsedExample]


def _all_marks(parse: Callable[[Mapping[str, Any]], ParsedExample], *fields: str) -> _Shape:
    return _Shape(frozenset(fields), frozenset(fields), parse)


_SHAPES = {
    DatasetFormat.TEXT: _all_marks(_text, "text"),
    DatasetFormat.PROMPT_COMPLETION: _all_marks(_prompt_and_completion, "prompt", "completion"),
    DatasetFormat.MESSAGES: _all_marks(parse_chat, *CHAT_FIELDS),
    DatasetFormat.INSTRUCTION: _all_marks(_instruction, "instruction", "input", "output"),
    DatasetFormat.SHAREGPT: _Shape(frozenset({"conversations"}), SHAREGPT_FIELDS, parse_sharegpt),
    DatasetFormat.PREFERENCE: _Shape(ANSWER_FIELDS, PREFERENCE_FIELDS, parse_preference),
}

FIELDS = frozenset[str]().union(*(shape.fields for shape in _SHAPES.values()))
"""All keys that rows of any format can have."""


def fields_of(format_: DatasetFormat) -> frozenset[str]:
    """All keys that rows of a format can have."""
    return _SHAPES[format_].fields
