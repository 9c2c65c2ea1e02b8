"""Recognises at a glance what nearly every line of a data set is.

An upload of some hundred MiB has millions of lines, and `parse_line`, which can say all that may be
wrong with one, takes several times as long for each. So the checker asks here first. What this
module accepts, `parse_line` accepts too, as the same format (a property test holds it to that); of
all else it only says that it does not know.
"""

from typing import Any

from app.core import strict_json
from app.core.dataset.formats import DatasetFormat

_ROLES = ("user", "assistant", "system")


def find_plain_format(line: bytes) -> DatasetFormat | None:
    """The format of a line that is an example of it, and uses no tools; None if in any doubt."""
    try:
        row = strict_json.loads_quickly(line)
    except ValueError:
        return None
    if row.__class__ is not dict:
        return None
    # All that is accepted is text, so that there is no number which may be too large.
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
    """Whether each message is a role and a text, and one of them is the assistant's."""
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
