"""Limits on a line of an uploaded dataset, so that no line takes much memory or time.

They hold for uploads only. A file that an earlier version accepted is still trained on.
"""

import json
from typing import Any, cast

from app.core import strict_json
from app.core.dataset.formats import (
    ChatExample,
    DatasetFormat,
    LineError,
    ParsedExample,
    PreferenceExample,
)

MAX_LINE_BYTES = 8 * 1024 * 1024

MAX_LINES = 10_000_000
"""Maximum number of lines in a file. Each takes about a microsecond to check."""

MAX_VALUES = 50_000
"""Maximum number of JSON values in a line. Python needs up to 200 bytes for each."""

MAX_DEPTH = 64
"""Maximum depth of the JSON of a line, and of the arguments of a tool call."""

MAX_MESSAGES = 10_000
"""Maximum number of messages in a line, each of which takes about a millisecond to render."""

MAX_EXPANDED_BYTES = 4 * 1024**3
"""Maximum size of the content of a compressed file. It takes about a minute to check."""

MAX_EXPANSION = 100
"""How many times as large as a compressed file its content may be. Datasets reach about 10."""

MIN_EXPANSION_BYTES = 16 * 1024**2
"""Size of a content that is accepted at any ratio, because small files cost little."""


def check_size(line: bytes) -> None:
    """Refuse a line whose JSON would take much memory, before it is parsed.

    Raises:
        LineError: the line has too many values.
    """
    if strict_json.has_more_values(line, MAX_VALUES):
        raise _too_many_values()


def check_example(format_: DatasetFormat, example: ParsedExample) -> bool:
    """Refuse an example that a chat template would render slowly or not at all.

    Returns:
        Whether the example uses tools.

    Raises:
        LineError: it has too many messages, or its tools are nested too deeply.
    """
    is_pair = isinstance(example, PreferenceExample)
    chats = (example.preferred, example.non_preferred) if is_pair else (example,)
    uses_tools = False
    for chat in chats:
        if isinstance(chat, ChatExample):
            _check_chat(chat, _CHAT_FIELDS.get(format_, ""))
            uses_tools |= chat.uses_tools
    return uses_tools


_CHAT_FIELDS = {DatasetFormat.MESSAGES: "messages", DatasetFormat.SHAREGPT: "conversations"}
"""The field that has the chat, where it is one field."""


def _check_chat(example: ChatExample, field: str) -> None:
    count = len(example.messages)
    if count > MAX_MESSAGES:
        raise LineError(
            "too_many_messages",
            f"This chat has {count:,} messages; the limit is {MAX_MESSAGES:,}. Split it.",
            field,
        )
    if strict_json.is_deeper(example.tools, MAX_DEPTH):
        raise _too_deep("tools")
    for index, message in enumerate(example.messages):
        calls = message.get("tool_calls")
        if not calls:
            continue
        path = f"{field}[{index}].tool_calls" if field == "messages" else field
        if strict_json.is_deeper(calls, MAX_DEPTH):
            raise _too_deep(path)
        for place, call in enumerate(calls):
            where = f"{path}[{place}].function.arguments" if field == "messages" else field
            _check_arguments(call, where)


def _check_arguments(call: dict[str, Any], path: str) -> None:
    """Check the arguments of a tool call, which OpenAI's format has as a string of JSON.

    A string that is not JSON is accepted: the model then learns to write it.
    """
    function = call.get("function")
    if not isinstance(function, dict):
        return
    text = cast("dict[str, Any]", function).get("arguments")
    if not isinstance(text, str):
        return
    if strict_json.has_more_values(text.encode(), MAX_VALUES):
        raise _too_many_values(path)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(path) from error
    except ValueError:
        return
    if strict_json.is_deeper(value, MAX_DEPTH):
        raise _too_deep(path)
    if "\\u" in text and not _is_encodable(value):
        raise LineError(
            "invalid_json",
            "The arguments contain half of a surrogate pair. Write them with a JSON library.",
            path,
        )


def _is_encodable(value: Any) -> bool:
    """Whether no string of a JSON value has half of a surrogate pair, which no tokenizer reads."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_many_values(path: str = "") -> LineError:
    problem = f"This line has more than {MAX_VALUES:,} JSON values. Split the example."
    return LineError("too_many_values", problem, path)


def _too_deep(path: str) -> LineError:
    problem = f"This is nested more than {MAX_DEPTH} levels deep. Make it flatter."
    return LineError("too_deep", problem, path)
