"""Server-sent events: how a message is written, and the cursor of a job's stream."""

import re
from dataclasses import dataclass
from typing import Literal

from app.core.errors import InvalidRequestError
from app.core.job.loss_log import MAX_STEP

Kind = Literal["job", "event", "step", "end"]

RETRY_MS = 2000
"""How long a client waits before it connects again, in milliseconds."""

COMMENT = b": the stream is open\n\n"
"""What is sent when nothing else is, so that neither a proxy nor the client closes it."""

LATEST = "latest"
"""Cursor of a reader who wants to see only what comes from now on."""

_CURSOR = re.compile(r"(\d{1,10})\.(\d{1,10})\.(\d{1,10})", re.ASCII)
_MAX_NUMBER = MAX_STEP + 1
"""Largest number in a cursor: a valid integer of both databases."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How much of a job's stream a reader has received. The default is nothing."""

    event: int = 0
    """Number of the last event within the job."""
    attempt: int = 0
    """Attempt that took the last step."""
    next_step: int = 0
    """Number after that of the last step."""

    def is_beyond(self, other: "Cursor") -> bool:
        """Whether it includes something that the other one does not."""
        steps = (self.attempt, self.next_step)
        return self.event > other.event or steps > (other.attempt, other.next_step)

    def __str__(self) -> str:
        return f"{self.event}.{self.attempt}.{self.next_step}"


def parse_cursor(text: str, *, param: str) -> Cursor:
    """Read a cursor that a client sends back.

    Args:
        text: the `id` of a message.
        param: where the client has sent it, for the error.

    Raises:
        InvalidRequestError: it is none.
    """
    found = _CURSOR.fullmatch(text)
    numbers = [int(number) for number in found.groups()] if found else []
    if not numbers or max(numbers) > _MAX_NUMBER:
        raise InvalidRequestError(
            f"{param} must be the id of a message of this stream. Leave it out to receive "
            "everything from the beginning.",
            code="invalid_cursor",
            param=param,
        )
    return Cursor(*numbers)


def write_message(kind: Kind, data: str, cursor: Cursor | None = None) -> bytes:
    """One message. `data` is a line of JSON; `cursor` is the reader's after this message."""
    identity = f"id: {cursor}\n" if cursor else ""
    return f"{identity}event: {kind}\ndata: {data}\n\n".encode()


def opening() -> bytes:
    """What every stream begins with."""
    return f"retry: {RETRY_MS}\n\n".encode()
