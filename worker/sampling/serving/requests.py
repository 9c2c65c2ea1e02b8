"""A request, from its arrival to its last answer."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, Protocol

from app.core.sampling.messages import Accepted, Ask, Delta, Finished, Refused
from worker.sampling.decoding.refusals import RefusedError

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


@dataclass(eq=False, slots=True)
class Request:
    ask: Ask
    files: Sequence[BinaryIO]
    """Weights and configuration of the adapter; none for the base model."""
    outlet: Outlet
    is_cancelled: bool = False
    """Whether nobody waits for the answers any more."""
    has_ended: bool = field(default=False, init=False)

    def tell(self, *answers: Told) -> None:
        if answers and not self.has_ended:
            self.outlet.send(answers, is_last=False)

    def end(self, *answers: Told) -> None:
        """Send the last answers, if it has not ended yet."""
        if self.has_ended:
            return
        self.has_ended = True
        self.outlet.send(answers, is_last=True)
        for file in self.files:
            with suppress(OSError):
                file.close()


def explain_failure(error: Exception) -> Refused:
    """What the API is told when a request has failed on something that nobody has foreseen."""
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
