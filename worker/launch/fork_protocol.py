"""What a worker asks of its fork server, and what that answers: each in one datagram of JSON."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

MAX_MESSAGE_BYTES = 64 * 1024


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Request(_Message):
    """One at a time: the next is sent once this one is answered; `preload` has no answer."""

    what: Literal["preload", "prepare", "fork", "look", "bury"]
    """`preload`: load what every job needs, with one descriptor, of a lock that is held meanwhile.
    `prepare`: load what the job in `directory` needs. `fork`: start a child for it, with three
    descriptors: for its events, for its log, and of its lock. `look`: wait for the end of the
    child, which keeps its process id. `bury`: give that back to the kernel."""

    directory: Path | None = None


class Answer(_Message):
    refusal: str | None = None
    """Why it was not done; null when it was."""

    pid: int | None = None
    """Of the child that was forked."""

    exit_code: int | None = None
    """Of the child that has ended, or minus the signal that ended it."""
