"""Why a request gets no answer, or not all of it."""

from app.core.sampling.messages import Refused


class RefusedError(Exception):
    """A request cannot be answered.

    Attributes:
        answer: what the API is told.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.answer = Refused(status=400, code=code, message=message, param=param)


class BrokenModelError(RefusedError):
    """The logits of a model are not numbers, so nothing can be chosen by them."""

    def __init__(self) -> None:
        code, message = "model_broken", (
            "The model computes values that are not numbers. If it is a tuned model, its training "
            "may have diverged: try an earlier checkpoint."
        )
        super().__init__(code, message, param="model")
        self.answer = Refused(status=500, code=code, message=message, param="model")
