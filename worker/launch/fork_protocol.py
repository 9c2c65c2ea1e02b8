"""Requests of a worker to its fork server, and the answers. Each is one datagram of JSON."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from worker.launch.sandbox.confinement import Confinement

MAX_MESSAGE_BYTES = 64 * 1024

What = Literal["preload", "prepare", "fork", "wait", "bury"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Request(_Message):
    """A request. The next one is sent once this one is answered; `preload` has no answer."""

    number: int
    """Identifies the request, so that a late answer is not taken for that of another request."""

    what: What
    """`preload`: load what every job needs. Comes with the descriptor of a lock to hold meanwhile.
    `prepare`: load what the job in `directory` needs. `fork`: start a child for that job. Comes
    with three descriptors: for its events, for its log, and of its lock. `wait`: wait for the end
    of the child `pid`, which keeps its process id. `bury`: release the process id."""

    directory: Path | None = None

    pid: int | None = None
    """Process id of the child that the request is about."""

    confinement: Confinement | None = None
    """What the child of `fork` applies to itself. Null if it is not contained."""


class Answer(_Message):
    number: int
    """Number of the request."""

    refusal: str | None = None
    """Why the request was refused. Null if it was carried out."""

    pid: int | None = None
    """Process id of the child, after `fork`."""

    exit_code: int | None = None
    """Exit code of the child after `wait`; minus the number of the signal if one killed it."""
