"""The recipe `auto`: hyperparameters that fit the size of the base model and of the data.

`docs/recipes.md` has the same tables, and says what was measured and where the rest comes from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.job.lora_shape import LoraShape

TARGETS = "all-linear"
ALPHA = 32.0
"""Alpha of every rank, so that the same learning rate fits all ranks."""

MEASURED = "measured"

_BYTES_PER_TOKEN = 4
"""Approximate size of a token of English text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSize:
    """What the recipe chooses by."""

    parameters: int | None
    """Number of parameters of the base model. None if unknown."""
    rows: int
    """Number of rows of the training file."""
    bytes: int
    """Size of the training file."""

    @property
    def tokens(self) -> int:
        """Approximate number of tokens of the training file."""
        return self.bytes // _BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of a table: the value for all sizes below a limit."""

    below: float
    value: float
    basis: str
    """`MEASURED`, or the published practice that the value follows."""


LEARNING_RATES = (
    Choice(0.5e9, 4e-4, MEASURED),
    Choice(3e9, 4e-4, "LoRA Without Regret"),
    Choice(15e9, 2e-4, "QLoRA, Unsloth"),
    Choice(math.inf, 1e-4, "QLoRA"),
)
"""Learning rate by the number of parameters, for an adapter of all linear layers with `ALPHA`."""

RANKS = (
    Choice(5e6, 16, MEASURED),
    Choice(math.inf, 64, "LoRA Without Regret"),
)
"""Rank by the number of tokens of the training file."""

EPOCHS = (
    Choice(10_000, 3, MEASURED),
    Choice(math.inf, 1, "Unsloth"),
)
"""Number of epochs by the number of rows. `MIN_STEPS` may require more."""

MIN_STEPS = 48
"""Number of optimizer steps that a small file is repeated for, within `MAX_EPOCHS`."""
MAX_EPOCHS = 10

UNKNOWN_PARAMETERS = 7e9
"""Number of parameters that is assumed where it is unknown. A rate for a larger model is safe."""

MAX_LEARNING_RATE = 2e-3
"""Limit of the learning rate, however small alpha is."""


def choose_rank(size: JobSize) -> int:
    return int(_find(RANKS, size.tokens))


def choose_epochs(size: JobSize, *, batch_size: int) -> int:
    """Choose the number of epochs: more for a small file, which would be over in a few steps."""
    usual = int(_find(EPOCHS, size.rows))
    needed = math.ceil(MIN_STEPS / math.ceil(max(size.rows, 1) / batch_size))
    return max(usual, min(needed, MAX_EPOCHS))


def choose_learning_rate(
    size: JobSize, lora: LoraShape, *, loraplus_lr_ratio: float | None
) -> float:
    """Choose the learning rate that fits an adapter of this shape.

    With AdamW, the change of the weights is early on in proportion to the learning rate of the B
    matrices and to alpha, whatever the rank. The rate is therefore divided by the same factor by
    which alpha exceeds `ALPHA`. rsLoRA multiplies alpha by the root of the rank, and LoRA+
    multiplies the learning rate of the B matrices.
    """
    alpha = lora.alpha * (math.sqrt(lora.rank) if lora.use_rslora else 1.0)
    rate = _find(LEARNING_RATES, size.parameters or UNKNOWN_PARAMETERS)
    fitting = rate * ALPHA / alpha / (loraplus_lr_ratio or 1.0)
    return min(float(f"{fitting:.2g}"), MAX_LEARNING_RATE)


def _find(table: Sequence[Choice], size: float) -> float:
    return next(choice.value for choice in table if size < choice.below)
