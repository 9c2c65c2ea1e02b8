"""Parses a line of an uploaded dataset, or says what is wrong, where, and how to fix it.

A file has one of three formats:

    {"text": "..."}                              the whole text is learned
    {"prompt": "...", "completion": "..."}       the completion is learned
    {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}
                                                 every answer of the assistant is learned, unless
                                                 its "weight" is 0

Lines end with a line feed, with or without a carriage return; U+2028 and its like do not end a
line. A byte order mark at the start of the file and blank lines at its end are accepted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO, TypeGuard

from app.core import strict_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MAX_PROBLEMS = 50
"""Number of problems after which the check of a file stops."""


class DatasetFormat(StrEnum):
    TEXT = "text"
    PROMPT_COMPLETION = "prompt_completion"
    MESSAGES = "messages"


@dataclass(frozen=True, slots=True)
class TextExample:
    text: str


@dataclass(frozen=True, slots=True)
class PromptExample:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class ChatExample:
    messages: list[dict[str, Any]]
    """Messages in the form that chat templates take: `role`, `content` (a string), ..."""

    is_learned: list[bool]
    """Whether each message is learned."""

    tools: list[dict[str, Any]] | None = None

    @property
    def uses_tools(self) -> bool:
        return self.tools is not None or any(
            message["role"] == "tool" or message.get("tool_calls") for message in self.messages
        )


Example = TextExample | PromptExample | ChatExample


class LineError(ValueError):
    """First problem of a line. `others` has the remaining problems of the same line."""

    def __init__(self, code: str, message: str, path: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.path = path
        self.others: tuple[LineError, ...] = ()


_KEYS = {
    DatasetFormat.TEXT: {"text"},
    DatasetFormat.PROMPT_COMPLETION: {"prompt", "completion"},
    DatasetFormat.MESSAGES: {"messages", "tools", "parallel_tool_calls"},
}
_MESSAGE_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id"}
_ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_line(line: bytes) -> tuple[DatasetFormat, Example]:
    """Parse one line of a dataset.

    Raises:
        LineError: the line is not a valid example.
    """
    try:
        row = strict_json.loads(line)
    except strict_json.StrictJsonError as error:
        code = "not_utf8" if str(error).startswith("not UTF-8") else "invalid_json"
        raise LineError(code, f"This line is not valid JSON: {error}.") from error
    if not _is_object(row):
        raise LineError("not_an_object", 'This line must be a JSON object, as {"text": "..."} is.')
    format_ = _format_of(row)
    errors = _unknown_fields(row, _KEYS[format_], f"the {format_} format")
    example: Example | None = None
    try:
        example = _PARSERS[format_](row)
    except LineError as error:
        errors += [error, *error.others]
    if example is None or errors:
        raise _together(errors)
    return format_, example


def _format_of(row: Mapping[str, Any]) -> DatasetFormat:
    formats = [format_ for format_, keys in _KEYS.items() if keys & row.keys()]
    if not formats:
        keys = ", ".join(repr(key[:40]) for key in list(row)[:5]) or "none"
        raise LineError(
            "unknown_format",
            "This line needs the key 'messages', or 'prompt' and 'completion', or 'text'. "
            f"Its keys are: {keys}.",
        )
    if len(formats) > 1:
        names = " and ".join(formats)
        raise LineError("unknown_format", f"This line mixes the formats {names}. Keep one of them.")
    return formats[0]


def _unknown_fields(
    fields: Mapping[str, Any], known: set[str], what: str, path: str = ""
) -> list[LineError]:
    return [
        LineError(
            "unknown_field",
            f"{name[:80]!r} is not a field of {what}. Remove it.",
            f"{path}{name[:80]}",
        )
        for name in sorted(fields.keys() - known)[:MAX_PROBLEMS]
    ]


def _together(errors: Sequence[LineError]) -> LineError:
    """Attach all but the first error to the first one."""
    first, *others = errors
    first.others = tuple(others)
    return first


def _text(row: Mapping[str, Any]) -> TextExample:
    return TextExample(_string(row, "text"))


def _prompt_and_completion(row: Mapping[str, Any]) -> PromptExample:
    prompt = _string(row, "prompt", may_be_empty=True)
    return PromptExample(prompt, _string(row, "completion"))


def _string(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    if key not in row:
        raise LineError("missing_field", f"{key!r} is missing. Add it.", key)
    value = row[key]
    if not isinstance(value, str):
        raise LineError("wrong_type", f"{key!r} must be a string.", key)
    if not value and not may_be_empty:
        raise LineError("empty_field", f"{key!r} is empty. Fill it, or remove the line.", key)
    return value


def _chat(row: Mapping[str, Any]) -> ChatExample:
    messages = row.get("messages")
    if not _is_list(messages) or not messages:
        raise LineError("wrong_type", "'messages' must be a list of messages.", "messages")
    tools = row.get("tools")
    if tools is not None and not _is_list_of_objects(tools):
        raise LineError("wrong_type", "'tools' must be a list of objects.", "tools")
    parsed = _all_messages(messages)
    if not any(message["role"] == "assistant" for message, _ in parsed):
        problem = "There is no assistant message, so there is nothing to learn. Add one."
        raise LineError("no_assistant_message", problem, "messages")
    is_learned = [learned for _, learned in parsed]
    if not any(is_learned):
        problem = "Every answer has weight 0, so there is nothing to learn. Set one to 1."
        raise LineError("no_trainable_tokens", problem, "messages")
    return ChatExample([message for message, _ in parsed], is_learned, tools or None)


def _all_messages(messages: Sequence[Any]) -> list[tuple[dict[str, Any], bool]]:
    """Parse all messages. The error has the first `MAX_PROBLEMS` problems, or a few more."""
    parsed: list[tuple[dict[str, Any], bool]] = []
    errors: list[LineError] = []
    for index, message in enumerate(messages):
        try:
            parsed.append(_message(message, f"messages[{index}]"))
        except LineError as error:
            errors += [error, *error.others]
            if len(errors) >= MAX_PROBLEMS:
                break
    if errors:
        raise _together(errors)
    return parsed


def _message(message: Any, path: str) -> tuple[dict[str, Any], bool]:
    """Convert a message to the form of chat templates, and say whether it is learned."""
    if not _is_object(message):
        raise LineError("wrong_type", "This message is not a JSON object.", path)
    unknown = _unknown_fields(message, _MESSAGE_KEYS, "a message", f"{path}.")
    if unknown:
        raise _together(unknown)
    for name in ("name", "tool_call_id"):
        if not isinstance(message.get(name, ""), str):
            raise LineError("wrong_type", f"{name!r} must be a string.", f"{path}.{name}")
    role = message.get("role")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        problem = f"{role!r:.40} is not a role" if "role" in message else "'role' is missing"
        raise LineError("bad_role", f"{problem}. Use one of {known}.", f"{path}.role")
    is_learned = _is_learned(message, path)
    cleaned = {key: value for key, value in message.items() if key != "weight"}
    cleaned["content"] = _content(message, path)
    if role == "developer":  # OpenAI's newer word for it; no chat template knows it
        cleaned["role"] = "system"
    return cleaned, is_learned


def _is_learned(message: Mapping[str, Any], path: str) -> bool:
    weight = message.get("weight")
    if weight is None:
        return message["role"] == "assistant"
    if message["role"] != "assistant":
        raise LineError(
            "bad_weight", "Only assistant messages can have a weight. Remove it.", f"{path}.weight"
        )
    if isinstance(weight, bool) or weight not in (0, 1):
        problem = f"The weight is {weight!r:.40}. Use 0 or 1."
        raise LineError("bad_weight", problem, f"{path}.weight")
    return weight == 1


def _content(message: Mapping[str, Any], path: str) -> str:
    """Text of a message. A list of text parts is joined."""
    content = message.get("content")
    calls = message.get("tool_calls")
    if calls is not None and (message["role"] != "assistant" or not _is_list_of_objects(calls)):
        problem = "'tool_calls' must be a list of objects, in an assistant message."
        raise LineError("wrong_type", problem, f"{path}.tool_calls")
    where = f"{path}.content"
    if _is_list(content):
        content = "".join(_text_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    if content is None:
        if calls:
            return ""
        raise LineError("missing_field", "'content' is missing. Add it.", where)
    if not isinstance(content, str):
        raise LineError("wrong_type", "'content' must be a string or a list of parts.", where)
    if not content and message["role"] == "assistant" and not calls:
        raise LineError("empty_field", "This answer is empty. Fill it, or remove it.", where)
    return content


def _text_part(part: Any, path: str) -> str:
    if _is_object(part) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    problem = 'This part is not text. Keep only parts such as {"type": "text", "text": "..."}.'
    raise LineError("unsupported_content", problem, path)


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_list_of_objects(value: Any) -> bool:
    return _is_list(value) and all(_is_object(item) for item in value)


_PARSERS: Mapping[DatasetFormat, Callable[[Mapping[str, Any]], Example]] = {
    DatasetFormat.TEXT: _text,
    DatasetFormat.PROMPT_COMPLETION: _prompt_and_completion,
    DatasetFormat.MESSAGES: _chat,
}


def read_examples(source: BinaryIO) -> Iterator[tuple[int, Example]]:
    """Yield the line number, from 1, and the example of every line of a checked file.

    Raises:
        LineError: a line is invalid, which the check at the upload should have found.
    """
    for number, line in enumerate(source, start=1):
        content = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if content.strip():
            yield number, parse_line(content)[1]
