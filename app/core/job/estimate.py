"""What a job will take, estimated before it is trained."""

from functools import partial
from typing import Annotated

from pydantic import AfterValidator, Field

from app.core.job.child.child_text import clean
from app.core.job.child.job_spec import ComputeSettings
from app.core.job.frozen import Frozen
from app.core.job.loss_log import MAX_COUNT, MAX_STEP

MAX_BYTES = 2**60
_MAX_S = 1e10

Advice = Annotated[str, AfterValidator(partial(clean, limit=300))]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Bytes = Annotated[int, Field(ge=0, le=MAX_BYTES)]
Seconds = Annotated[float, Field(ge=0, le=_MAX_S)]


class Duration(Frozen):
    """Time from the start of an attempt to the end of the job."""

    seconds: Seconds
    """Estimated duration, in seconds."""
    low: Seconds
    """Duration on a quiet machine if all goes well, in seconds."""
    high: Seconds
    """Duration that is seldom exceeded, in seconds."""


class Estimate(Frozen):
    """What a job takes on one machine, if it trains to the end without interruption."""

    steps: int = Field(ge=1, le=MAX_STEP)
    """Number of optimizer steps."""
    examples: Count
    """Number of examples that are trained on, in one epoch."""
    tokens_per_epoch: Count
    """Tokens that are read in an epoch, after truncation and without padding."""
    tokens: Count
    """Tokens that are read in training, over all epochs."""
    learned_tokens: Count | None
    """Tokens of an epoch that are learned. Null if they were not counted."""
    duration: Duration | None
    """Null on a GPU, whose speed is not known."""
    peak_memory_bytes: Bytes
    """Peak memory of the training process; on a GPU, of the GPU."""
    least_memory_bytes: Bytes
    """Memory below which the job cannot run. It is slower with so little."""
    disk_bytes: Bytes
    """Most bytes that checkpoints and saved states take on the disk at a time."""
    compute: ComputeSettings
    """How the job would be computed, with every choice made."""
    advice: tuple[Advice, ...] = Field(default=(), max_length=8)
    """What would make the job fit, or faster, in sentences."""
