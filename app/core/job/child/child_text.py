"""Text that a training process wrote, made safe to store, to log and to show to clients."""

import re
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_TEXT = 2000
"""Longest message of an event or an error, in characters. The end of a longer one is cut off."""

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that change how a terminal or a reader sees the text around them. A line feed and a
tab are harmless; a zero byte is refused by PostgreSQL."""

_ABSOLUTE_PATH = re.compile(r"(?<![\w.~])(?:/[^/\s:;,'\"<>()\[\]{}|]+)+/?")
_HIDDEN_PATH = "[path]"


def clean(text: str, *, limit: int = MAX_TEXT) -> str:
    """Replace control characters and cut the text to `limit` characters."""
    text = _UNSAFE.sub("\ufffd", text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def without_paths(text: str) -> str:
    """Replace every absolute path: clients need not know the machine's directories."""
    return _ABSOLUTE_PATH.sub(_HIDDEN_PATH, text)


def last_line(log: str) -> str:
    """The last line of a log that is not blank, without paths. Empty if there is none."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return clean(without_paths(lines[-1]), limit=300) if lines else ""


ShortText = Annotated[str, AfterValidator(partial(clean, limit=300))]
Text = Annotated[str, AfterValidator(without_paths), AfterValidator(clean)]
"""A message for clients."""
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
