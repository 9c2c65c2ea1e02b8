"""Reads chats in ShareGPT's form: `conversations`, a list of turns with `from` and `value`."""

from collections.abc import Mapping
from typing import Any

from app.core import strict_json
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
from app.core.dataset.rows.messages import ParsedMessage, as_tool, as_tool_call, build_chat

SHAREGPT_FIELDS = frozenset({"conversations", "system", "tools", "id"})

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}


def parse_sharegpt(row: Mapping[str, Any]) -> ChatExample:
    """The chat of a row that has `conversations`.

    Raises:
        LineError: the chat is malformed or has nothing to learn.
    """
    turns = row.get("conversations")
    if not is_list(turns) or not turns:
        problem = "'conversations' must be a list of turns."
        raise LineError("wrong_type", problem, "conversations")
    parsed = [*_system(row), *parse_each(turns, _parse_turn, "conversations")]
    return build_chat(parsed, _tools(row), "conversations")


def _system(row: Mapping[str, Any]) -> list[ParsedMessage]:
    system = row.get("system")
    if not system:
        return []
    if not isinstance(system, str):
        raise LineError("wrong_type", "'system' must be a string.", "system")
    return [({"role": "system", "content": system}, False)]


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Tools, which this form often has as a string of JSON, and without their type."""
    tools: Any = row.get("tools") or []
    if isinstance(tools, str):
        tools = _read_json(tools, "tools")
    if not is_list_of_objects(tools):
        raise LineError("wrong_type", "'tools' must be a list of objects.", "tools")
    return [tool if "function" in tool else as_tool(tool) for tool in tools] or None


def _parse_turn(turn: Any, index: int, path: str) -> ParsedMessage:
    if not is_object(turn):
        raise LineError("wrong_type", "This turn is not a JSON object.", path)
    turn = without_nulls(turn)
    unknown = unknown_fields(turn, {"from", "value"}, "a turn", f"{path}.")
    if unknown:
        raise together(unknown)
    speaker = turn.get("from")
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        problem = "'from' is missing" if speaker is None else f"{speaker!r:.40} is not a speaker"
        known = ", ".join(_SPEAKERS)
        raise LineError("bad_role", f"{problem}. Use one of {known}.", f"{path}.from")
    where = f"{path}.value"
    value = turn.get("value")
    if value is None:
        raise LineError("missing_field", "'value' is missing. Add it.", where)
    if not isinstance(value, str):
        raise LineError("wrong_type", "'value' must be a string.", where)
    if role == "assistant" and not value:
        raise LineError("empty_field", "This answer is empty. Fill it, or remove it.", where)
    message: dict[str, Any] = {"role": role, "content": value}
    if speaker == "function_call":
        message |= {"content": "", "tool_calls": _calls(value, index, where)}
    return message, role == "assistant"


def _calls(value: str, index: int, path: str) -> list[dict[str, Any]]:
    """The calls that a turn has as JSON: an object with `name` and `arguments`, or a list."""
    calls = _read_json(value, path)
    calls = calls if is_list(calls) else [calls]
    if not calls or not is_list_of_objects(calls):
        problem = "A 'function_call' must be a JSON object with 'name' and 'arguments'."
        raise LineError("wrong_type", problem, path)
    return [as_tool_call(index + place, call) for place, call in enumerate(calls)]


def _read_json(text: str, path: str) -> Any:
    try:
        return strict_json.loads(text.encode())
    except strict_json.StrictJsonError as error:
        raise LineError("invalid_json", f"This text is not valid JSON: {error}.", path) from error
