"""Reads chats in OpenAI's form, as `model_dump()` of its client writes them.

The deprecated `functions`, `function_call` and role `function` are converted to `tools`,
`tool_calls` and role `tool`, which chat templates know.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.dataset.formats import ChatExample, LineError
from app.core.dataset.rows.fields import (
    is_list,
    is_list_of_objects,
    is_object,
    parse_each,
    together,
    unknown_fields,
    without_nulls,
)

CHAT_FIELDS = frozenset({"messages", "tools", "functions", "parallel_tool_calls"})

ROLES = ("system", "developer", "user", "assistant", "tool")
_TEMPLATE_FIELDS = ("name", "tool_call_id", "reasoning_content")
"""Optional texts of a message that are passed to the chat template."""

_MESSAGE_FIELDS = frozenset(
    {"role", "content", "weight", "tool_calls", "function_call", "refusal", "audio", "annotations"}
    | set(_TEMPLATE_FIELDS)
)
_PART_FIELDS = frozenset({"type", "text", "prompt_cache_breakpoint"})

Message = dict[str, Any]
ParsedMessage = tuple[Message, bool]
"""A message in the form of chat templates, and whether it is learned."""


def parse_chat(row: Mapping[str, Any]) -> ChatExample:
    """The chat of a row that has `messages`.

    Raises:
        LineError: the chat is malformed or has nothing to learn.
    """
    return build_chat(parse_messages(row, "messages"), parse_tools(row), "messages")


def build_chat(
    parsed: Sequence[ParsedMessage], tools: list[dict[str, Any]] | None, path: str
) -> ChatExample:
    """A chat with an answer that is learned.

    Raises:
        LineError: there is none.
    """
    if not any(message["role"] == "assistant" for message, _ in parsed):
        problem = "There is no assistant message, so there is nothing to learn. Add one."
        raise LineError("no_assistant_message", problem, path)
    is_learned = [learned for _, learned in parsed]
    if not any(is_learned):
        problem = "Every answer has weight 0, so there is nothing to learn. Set one to 1."
        raise LineError("no_trainable_tokens", problem, path)
    return ChatExample([message for message, _ in parsed], is_learned, tools)


def parse_messages(row: Mapping[str, Any], key: str, path: str = "") -> list[ParsedMessage]:
    """Parse the list of messages under a key of a row.

    Args:
        row: the object that has the list.
        key: the name of the list.
        path: where the object is in the line, with a trailing dot.

    Raises:
        LineError: a message is malformed. It has the first `MAX_PROBLEMS` problems, or a few more.
    """
    messages = _list_of_messages(row, key, path)
    parsed = parse_each(messages, _parse_learned, f"{path}{key}")
    _name_answered_calls(messages, [message for message, _ in parsed])
    return parsed


def parse_history(row: Mapping[str, Any], key: str) -> list[Message]:
    """Parse the messages of a chat that a model has to answer.

    They have the form of those of a dataset, with two differences: an earlier answer may be empty,
    as models write such answers, and nothing is ignored that has a meaning for training alone.

    Args:
        row: the object that has the list.
        key: the name of the list.

    Raises:
        LineError: as `parse_messages`.
    """
    messages = _list_of_messages(row, key)
    parsed = parse_each(messages, _parse_said, key)
    _name_answered_calls(messages, parsed)
    return parsed


def parse_tools(row: Mapping[str, Any], path: str = "") -> list[dict[str, Any]] | None:
    """The tools of a row, including its legacy `functions`. None if it has none.

    Raises:
        LineError: they are not lists of objects.
    """
    tools: list[dict[str, Any]] = []
    for key in ("tools", "functions"):
        offered: Any = row.get(key) or []
        if not is_list_of_objects(offered):
            raise LineError("wrong_type", f"{key!r} must be a list of objects.", f"{path}{key}")
        tools += offered if key == "tools" else [as_tool(function) for function in offered]
    return tools or None


def as_tool(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def as_tool_call(index: int, function: dict[str, Any]) -> dict[str, Any]:
    """A call of the message at `index`, with an id that says so."""
    return {"id": f"call_{index}", "type": "function", "function": function}


def _list_of_messages(row: Mapping[str, Any], key: str, path: str = "") -> list[Any]:
    messages = row.get(key)
    if not is_list(messages) or not messages:
        raise LineError("wrong_type", f"{key!r} must be a list of messages.", f"{path}{key}")
    return messages


def _parse_learned(message: Any, index: int, path: str) -> ParsedMessage:
    """A message of an example. None of its answers is empty."""
    cleaned = _parse_message(message, index, path)
    is_learned = _is_learned(message, cleaned["role"], path)
    if cleaned["role"] == "assistant" and not cleaned["content"] and "tool_calls" not in cleaned:
        where = f"{path}.content"
        if message.get("content") is None:
            raise LineError("missing_field", "'content' is missing. Add it.", where)
        raise LineError("empty_field", "This answer is empty. Fill it, or remove it.", where)
    return cleaned, is_learned


def _parse_said(message: Any, index: int, path: str) -> Message:
    """A message of a chat that a model has to answer."""
    cleaned = _parse_message(message, index, path)
    if message.get("weight") is not None:
        problem = "A weight has a meaning in training files alone. Remove it."
        raise LineError("unknown_field", problem, f"{path}.weight")
    parts = message.get("content")
    for number, part in enumerate(parts if is_list(parts) else ()):
        where = f"{path}.content[{number}]."
        unknown = unknown_fields(without_nulls(part), _PART_FIELDS, "a part of text", where)
        if unknown:
            raise together(unknown)
    return cleaned


def _parse_message(message: Any, index: int, path: str) -> Message:
    if not is_object(message):
        raise LineError("wrong_type", "This message is not a JSON object.", path)
    message = without_nulls(message)
    unknown = unknown_fields(message, _MESSAGE_FIELDS, "a message", f"{path}.")
    if unknown:
        raise together(unknown)
    role = _role(message, path)
    cleaned: Message = {"role": role}
    for name in _TEMPLATE_FIELDS:
        value = message.get(name)
        if value and not isinstance(value, str):
            raise LineError("wrong_type", f"{name!r} must be a string.", f"{path}.{name}")
        if value:
            cleaned[name] = value
    calls = _tool_calls(message, role, index, path)
    if calls:
        cleaned["tool_calls"] = calls
    cleaned["content"] = _content(message, role, path)
    return cleaned


def _role(message: Message, path: str) -> str:
    """The role, in the words of chat templates."""
    role = message.get("role")
    if role == "function":
        return "tool"
    if role not in ROLES:
        known = ", ".join(ROLES)
        problem = "'role' is missing" if role is None else f"{role!r:.40} is not a role"
        raise LineError("bad_role", f"{problem}. Use one of {known}.", f"{path}.role")
    return "system" if role == "developer" else role  # OpenAI's newer word for it


def _is_learned(message: Message, role: str, path: str) -> bool:
    weight = message.get("weight")
    if weight is None:
        return role == "assistant"
    if role != "assistant":
        raise LineError(
            "bad_weight", "Only assistant messages can have a weight. Remove it.", f"{path}.weight"
        )
    if isinstance(weight, bool) or weight not in (0, 1):
        problem = f"The weight is {weight!r:.40}. Use 0 or 1."
        raise LineError("bad_weight", problem, f"{path}.weight")
    return weight == 1


def _tool_calls(message: Message, role: str, index: int, path: str) -> list[dict[str, Any]]:
    calls: Any = message.get("tool_calls") or []
    if not is_list_of_objects(calls) or (calls and role != "assistant"):
        problem = "'tool_calls' must be a list of objects, in an assistant message."
        raise LineError("wrong_type", problem, f"{path}.tool_calls")
    legacy = message.get("function_call")
    if not legacy:
        return calls
    if not is_object(legacy) or role != "assistant":
        problem = "'function_call' must be an object, in an assistant message."
        raise LineError("wrong_type", problem, f"{path}.function_call")
    return [*calls, as_tool_call(index, legacy)]


def _content(message: Message, role: str, path: str) -> str:
    """Text of a message. A list of text parts is joined."""
    for kind in ("refusal", "audio"):
        if message.get(kind):
            problem = f"Models do not read {kind!r}. Put its text in 'content'."
            raise LineError("unsupported_content", problem, f"{path}.{kind}")
    content = message.get("content")
    where = f"{path}.content"
    if is_list(content):
        content = "".join(_text_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    if content is None:
        if role == "assistant":  # it calls tools, or is empty
            return ""
        raise LineError("missing_field", "'content' is missing. Add it.", where)
    if not isinstance(content, str):
        raise LineError("wrong_type", "'content' must be a string or a list of parts.", where)
    return content


def _text_part(part: Any, path: str) -> str:
    if is_object(part) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    problem = 'This part is not text. Keep only parts such as {"type": "text", "text": "..."}.'
    raise LineError("unsupported_content", problem, path)


def _name_answered_calls(messages: Sequence[Message], parsed: Sequence[Message]) -> None:
    """Give the results of legacy function calls the id of the call before them."""
    call_id = None
    for message, cleaned in zip(messages, parsed, strict=True):
        for call in cleaned.get("tool_calls", ()):
            call_id = call.get("id")
        if message["role"] == "function" and call_id is not None:
            cleaned.setdefault("tool_call_id", call_id)
