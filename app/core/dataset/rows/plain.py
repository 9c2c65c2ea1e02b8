"""Recognises plain rows: those that are valid without any doubt, and use no tools.

An upload of a few hundred MiB has millions of rows, and nearly all of them are plain. `parse_line`
finds every problem of a row but takes several times as long, so it is called only for the others.
A property test checks that it accepts every row that is plain here, as the same format.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import eq
from typing import Any

from app.core import strict_json
from app.core.dataset.formats import DatasetFormat
from app.core.dataset.limits import MAX_MESSAGES
from app.core.dataset.rows.preference import OPENAI_ANSWERS

_MAX_PLAIN_MESSAGES = MAX_MESSAGES // 2
"""Maximum number of messages in a plain list, so that a prompt and an answer are not too many."""

_ROLES = ("user", "assistant", "system")
_SPEAKERS = ("human", "gpt", "user", "assistant", "system")

_PAIR = {"prompt", "completion"}
_INSTRUCTION = {"instruction", "input", "output"}
_SHAREGPT = {"conversations", "id"}
_PREFERENCE = {"prompt", "chosen", "rejected"}
_MAY_BE_EMPTY = ("prompt", "input", "id")
"""Fields whose text may be empty."""


def is_plain_line(line: bytes, format_: DatasetFormat) -> bool:
    """Whether a line of JSONL is a plain example of a format. False if in any doubt."""
    try:
        row = strict_json.loads_quickly(line)
    except ValueError:
        return False
    # Every accepted value is text, so no number can be too large.
    return row.__class__ is dict and _CHECKS[format_](row)


def is_plain_row(row: Mapping[str, Any], format_: DatasetFormat) -> bool:
    """Whether a row of a table is a plain example of a format. False if in any doubt."""
    return _CHECKS[format_](row)


def count_characters(value: Any) -> int:
    """Number of characters of all texts in a plain row, or in a part of one."""
    if value.__class__ is str:
        return len(value)
    if value.__class__ is list:  # of messages, whose fields are texts
        return sum([len(text) for message in value for text in message.values()])
    return sum(map(count_characters, value.values()))


def count_plain_characters(columns: Mapping[str, Sequence[Any]], format_: DatasetFormat) -> int:
    """Number of characters in some rows of a table. 0 if it is in doubt whether all are plain.

    Args:
        columns: the cells of the rows, by the names of the columns.
        format_: the format that the rows must have.
    """
    first = {name: cells[0] for name, cells in columns.items()}
    if not is_plain_row(first, format_):
        return 0
    if format_ is DatasetFormat.PREFERENCE and any(map(eq, columns["chosen"], columns["rejected"])):
        return 0
    characters = 0
    for name, cells in columns.items():
        if set(map(type, cells)) != {str} or not (name in _MAY_BE_EMPTY or all(cells)):
            return 0
        text = "".join(cells)
        if "\0" in text:
            return 0
        characters += len(text)
    return characters


def _is_plain_text(row: Mapping[str, Any]) -> bool:
    return len(row) == 1 and _is_filled(row.get("text"))


def _is_plain_pair(row: Mapping[str, Any]) -> bool:
    has_both = _is_text(row.get("prompt")) and _is_filled(row.get("completion"))
    return has_both and len(row) == len(_PAIR)


def _is_plain_instruction(row: Mapping[str, Any]) -> bool:
    has_both = _is_filled(row.get("instruction")) and _is_filled(row.get("output"))
    return has_both and row.keys() <= _INSTRUCTION and _is_text(row.get("input", ""))


def _is_plain_chat(row: Mapping[str, Any]) -> bool:
    return len(row) == 1 and "assistant" in _roles_in(row.get("messages"))


def _is_plain_sharegpt(row: Mapping[str, Any]) -> bool:
    speakers = _roles_in(row.get("conversations"), _SPEAKERS, "from", "value")
    has_answer = "gpt" in speakers or "assistant" in speakers
    return has_answer and row.keys() <= _SHAREGPT and _is_text(row.get("id", ""))


def _is_plain_preference(row: Mapping[str, Any]) -> bool:
    if len(row) != len(_PREFERENCE):
        return False
    if "prompt" not in row:
        return _is_plain_openai_preference(row)
    prompt, answers = row["prompt"], (row.get("chosen"), row.get("rejected"))
    if answers[0] == answers[1]:
        return False
    if prompt.__class__ is str:
        return _is_text(prompt) and all(map(_is_filled, answers))
    return _ends_with_question(prompt) and all(map(_is_one_answer, answers))


def _is_plain_openai_preference(row: Mapping[str, Any]) -> bool:
    source: Any = row.get("input")
    if source.__class__ is not dict or len(source) != 1:
        return False
    return _ends_with_question(source.get("messages")) and any(
        _is_one_answer(row.get(preferred))
        and _is_one_answer(row.get(rejected))
        and row[preferred] != row[rejected]
        for preferred, rejected in OPENAI_ANSWERS
    )


def _ends_with_question(messages: Any) -> bool:
    return _roles_in(messages)[-1:] in (["user"], ["system"])


def _is_one_answer(messages: Any) -> bool:
    return _roles_in(messages) == ["assistant"]


def _is_text(value: Any) -> bool:
    return value.__class__ is str and "\0" not in value


def _is_filled(value: Any) -> bool:
    return value.__class__ is str and value != "" and "\0" not in value


def _roles_in(
    messages: Any, known: Sequence[str] = _ROLES, role_key: str = "role", text_key: str = "content"
) -> list[str]:
    """The role of each message. Empty unless each has just a known role and a text."""
    roles: list[str] = []
    if messages.__class__ is not list or len(messages) > _MAX_PLAIN_MESSAGES:
        return roles
    for message in messages:
        if message.__class__ is not dict or len(message) != 2:  # noqa: PLR2004 - role and text
            return []
        role, text = message.get(role_key), message.get(text_key)
        if role not in known or text.__class__ is not str or not text or "\0" in text:
            return []
        roles.append(role)
    return roles


_CHECKS: dict[DatasetFormat, Callable[[Mapping[str, Any]], bool]] = {
    DatasetFormat.TEXT: _is_plain_text,
    DatasetFormat.PROMPT_COMPLETION: _is_plain_pair,
    DatasetFormat.MESSAGES: _is_plain_chat,
    DatasetFormat.INSTRUCTION: _is_plain_instruction,
    DatasetFormat.SHAREGPT: _is_plain_sharegpt,
    DatasetFormat.PREFERENCE: _is_plain_preference,
}
