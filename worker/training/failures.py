"""Failures of a job that a user can fix. `docs/errors.md` lists their codes."""

import errno
from collections.abc import Sequence

from safetensors import SafetensorError

from app.core.dataset.formats import MAX_PROBLEMS
from app.core.job.child.training_events import (
    DataProblem,
    Failed,
    JobError,
    MemoryShort,
    OutOfSpace,
)
from app.core.job.training_config import TrainingConfig

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)
_SIGNS_OF_FAILED_ALLOCATION = ("can't allocate memory", "not enough memory", "out of memory")


class TrainingFailedError(Exception):
    """Becomes the child's `Failed` event. Other errors are crashes, except full memory or disk.

    Args:
        code: stable and machine-readable.
        message: what is wrong and how to fix it.
        param: field of the job that causes the failure, as the API spells it.
        problems: lines of the dataset that cause the failure. The first 50 are reported.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        problems: Sequence[DataProblem] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.problems = tuple(problems[:MAX_PROBLEMS])

    def as_event(self) -> Failed:
        return Failed(code=self.code, message=str(self), param=self.param, errors=self.problems)

    def as_error(self) -> JobError:
        return JobError(code=self.code, message=str(self), param=self.param, errors=self.problems)


def last_event_after(
    error: Exception, config: TrainingConfig
) -> Failed | OutOfSpace | MemoryShort | None:
    """The last event of a child that this error ends. None if it is a crash."""
    if isinstance(error, TrainingFailedError):
        return error.as_event()
    if isinstance(error, MemoryShortError):
        return error.event
    if is_out_of_space(error):
        return OutOfSpace(message=f"The disk is full: {_reason(error)}.")
    if is_out_of_memory(error):
        return Failed(
            code="out_of_memory",
            message="It does not fit in the memory of this machine. Choose a smaller base model. A "
            "training also takes less with a lower context_length, which is "
            f"{config.max_sequence_tokens:,}, or lora_r, which is {config.lora.rank}.",
        )
    return None


def _reason(error: Exception) -> str:
    """The message of the operating system, without the path, which is internal."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


class MemoryShortError(Exception):
    """A job, an export or a report does not fit into the free memory of its device.

    Args:
        event: what it needs and what there is.
    """

    def __init__(self, event: MemoryShort) -> None:
        super().__init__(event.message)
        self.event = event


def diverged(step: int, what: str, *, learning_rate: float) -> TrainingFailedError:
    """The failure of a job whose numbers have become infinite or not a number.

    Args:
        step: the step in which that was noticed.
        what: which number it is, and its value.
        learning_rate: learning rate of the job.
    """
    return TrainingFailedError(
        "loss_not_finite",
        f"Training diverged at step {step:,} ({what}). Lower learning_rate, which is "
        f"{learning_rate:g}, or set a warmup_ratio.",
        param="hyperparameters.learning_rate",
    )


def base_not_finite(loss: float) -> TrainingFailedError:
    """The failure of a job whose model computes no number before it is trained."""
    return TrainingFailedError(
        "loss_not_finite",
        f"The validation loss before training is {loss}. The weights of the base model, or of the "
        "adapter that the job continues, are damaged or too large for this dtype. Choose another "
        "model.",
        param="model",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch reports that as a RuntimeError with only a text."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in _SIGNS_OF_FAILED_ALLOCATION
    )


def is_out_of_space(error: BaseException) -> bool:
    """Whether a disk or a quota is full: safetensors reports that as an error with only a text."""
    if isinstance(error, OSError):
        return error.errno in _OUT_OF_SPACE
    return isinstance(error, SafetensorError) and any(
        f"(os error {number})" in str(error) for number in _OUT_OF_SPACE
    )
