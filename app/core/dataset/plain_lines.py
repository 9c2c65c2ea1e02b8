"""Recognises the plain lines of a dataset, which are nearly all of them, quickly.

An upload of a few hundred MiB has millions of lines. `parse_line` finds every problem of a line but
takes several times as long, so the checker calls it only for lines that this module does not
recognise. A property test checks that `parse_line` accepts every line that this module accepts, as
the same format.
"""

from typing import Any

from app.core import strict_json
from app.core.dataset.formats import DatasetFormat

_ROLES = ("user", "assistant", "system")


def find_plain_format(line: bytes) -> DatasetFormat | None:
    """Format of a plain example without tools. None if in any doubt."""
    try:
        row = strict_json.loads_quickly(line)
    except ValueError:
        return None
    if row.__class__ is not dict:
        return None
    # Every accepted value is text, so no number can be too large.
    match len(row):
        case 1:
            if "messages" in row:
                return DatasetFormat.MESSAGES if _is_plain_chat(row["messages"]) else None
            return DatasetFormat.TEXT if _is_filled(row.get("text")) else None
        case 2:
            is_plain = row.get("prompt").__class__ is str and _is_filled(row.get("completion"))
            return DatasetFormat.PROMPT_COMPLETION if is_plain else None
        case _:
            return None


def _is_filled(value: Any) -> bool:
    return value.__class__ is str and value != ""


def _is_plain_chat(messages: Any) -> bool:
    """Whether each message has just a role and a text, and one is the assistant's."""
    if messages.__class__ is not list:
        return False
    has_answer = False
    for message in messages:
        if message.__class__ is not dict or len(message) != 2:  # noqa: PLR2004 - role and content
            return False
        role, content = message.get("role"), message.get("content")
        if content.__class__ is not str or not content or role not in _ROLES:
            return False
        has_answer = has_answer or role == "assistant"
    return has_answer
