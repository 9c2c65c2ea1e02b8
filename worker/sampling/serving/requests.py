"""A request, from its arrival to its last answer."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, Protocol

from app.core.clock import steady_s
from app.core.sampling.messages import Accepted, Ask, Delta, Finished, Refused
from worker.sampling.decoding.refusals import RefusedError

logger = logging.getLogger(__name__)

Told = Accepted | Delta | Finished | Refused


class Outlet(Protocol):
    """Where the answers to a request go."""

    def send(self, answers: Sequence[Told], *, is_last: bool) -> None:
        """Send answers without waiting. May be called from any thread.

        Args:
            answers: what to send, in order.
            is_last: whether nothing comes after them.
        """
        ...


class UnavailableError(RefusedError):
    """The request is right, and cannot be answered here or now."""

    def __init__(self, code: str, message: str, *, status: Literal[500, 503] = 503) -> None:
        """Say why.

        Args:
            code: for programs.
            message: for people.
            status: 503 if it may pass.
        """
        super().__init__(code, message)
        self.answer = Refused(status=status, code=code, message=message)


class NoRoomError(UnavailableError):
    """There is no memory for what a request needs.

    Attributes:
        may_pass: whether there is if others end.
    """

    def __init__(self, what: str, needed: int, limit: int) -> None:
        message = (
            f"{what} takes {needed:,} bytes while it is loaded, and the sampler has no room for it "
            f"within its {limit:,} (TUNERY_SAMPLING_MEMORY_BYTES)."
        )
        super().__init__("sampler_memory", message)
        self.may_pass = needed <= limit


class NotLoadedError(Exception):
    """What a request needs has left since its turn came."""


@dataclass(eq=False, slots=True)
class Request:
    ask: Ask
    files: Sequence[BinaryIO]
    """Weights and configuration of the adapter; none for the base model."""
    outlet: Outlet
    arrived_s: float = field(default_factory=steady_s, init=False)
    """Time of the steady clock."""
    is_stopped: bool = field(default=False, init=False)
    """Whether whoever works on it must end it now."""
    has_ended: bool = field(default=False, init=False)
    _reason: tuple[Refused, ...] = field(default=(), init=False)

    def stop(self, *reason: Refused) -> None:
        """Have it ended by the thread that works on it. May be called from any thread.

        Args:
            reason: what to tell the client, if it is still there.
        """
        self._reason = reason
        self.is_stopped = True

    def tell(self, *answers: Told) -> None:
        if answers and not self.has_ended:
            self.outlet.send(answers, is_last=False)

    def end(self, *answers: Told) -> None:
        """Send the last answers, or why it was stopped, if it has not ended yet."""
        if self.has_ended:
            return
        self.has_ended = True
        self.outlet.send(answers or self._reason, is_last=True)
        for file in self.files:
            with suppress(OSError):
                file.close()


def explain_failure(error: BaseException) -> Refused:
    """What the API is told of a request that has failed. The log is told what has no excuse."""
    refusal = _explain(error)
    if refusal.status == 500:  # noqa: PLR2004 - a fault of the service or of its files
        logger.error("a request has failed", exc_info=error)
    return refusal


def _explain(error: BaseException) -> Refused:
    if isinstance(error, RefusedError):
        return error.answer
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        message = (
            "The sampler has too little memory for this request. Send a shorter one, or send it "
            "again when there are fewer others."
        )
        return Refused(status=503, code="sampler_memory", message=message)
    message = "The sampler has failed on this request. The log of the service says why."
    return Refused(status=500, code="sampling_failed", message=message)
