"""Which inputs of the adapters are zeroed: a function of seed, step and example alone.

So a step is the same however its batch is cut into micro-batches, and whatever ran before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.training.batching import MicroBatch

_LEVELS = 1 << 16
"""Of the random numbers that decide: 16 bits each. A probability of 0.05 becomes 0.050003, and the
scale of what is kept is that of the latter, so the mean is kept exactly."""


@dataclass(frozen=True, slots=True)
class DropoutKey:
    """Names the masks of one optimizer step."""

    seed: int
    step: int


@dataclass(frozen=True, slots=True)
class DropoutRate:
    """The probability with which a number is zeroed."""

    threshold: int
    """Numbers whose 16 random bits, as a signed integer, are below it are zeroed."""
    scale: float
    """What the others are multiplied by."""

    @classmethod
    def of(cls, probability: float) -> "DropoutRate":
        levels = round(probability * _LEVELS)
        return cls(levels - _LEVELS // 2, _LEVELS / (_LEVELS - levels))


def random_bits(key: DropoutKey, batch: MicroBatch, widths: Sequence[int]) -> Iterator[Tensor]:
    """The random bits of every adapted linear layer, in the order of the layers.

    Args:
        key: of the step.
        batch: whose tokens they are for; nothing is drawn for padding.
        widths: inputs of each adapted linear layer.

    Yields:
        `bits_BLI` of int16: B examples, L tokens, I inputs.
    """
    generators = [np.random.SFC64([key.seed, key.step, example]) for example in batch.examples]
    for width in widths:
        bits_BLI = np.zeros((*batch.input_ids_BL.shape, width), np.int16)
        for row_LI, generator, length in zip(bits_BLI, generators, batch.lengths, strict=True):
            row_LI[:length] = _draw(generator, length * width).reshape(length, width)
        yield torch.from_numpy(bits_BLI)


def _draw(generator: np.random.SFC64, count: int) -> np.ndarray:
    return generator.random_raw(-(-count // 4)).view(np.int16)[:count]
