"""Why a request gets no answer, or not all of it."""

from typing import Literal

from app.core.sampling.messages import Refused


class RefusedError(Exception):
    """A request cannot be answered.

    Attributes:
        answer: what the API is told.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        status: Literal[400, 500, 503] = 400,
    ) -> None:
        super().__init__(message)
        self.answer = Refused(status=status, code=code, message=message, param=param)


def model_is_broken() -> RefusedError:
    """The logits are not numbers, so nothing can be chosen by them."""
    message = (
        "The model computes values that are not numbers. If it is a tuned model, its training may "
        "have diverged: try an earlier checkpoint."
    )
    return RefusedError("model_broken", message, param="model", status=500)
