"""Every random number of a job: a function of the seed and of what it is drawn for.

Nothing depends on what was drawn before, so a resumed job draws what an uninterrupted job draws.
The dropout masks depend on seed, step, example and layer alone. So a step is the same however its
batch is cut into micro-batches, and a layer that is computed a second time, to save memory, is the
same again.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils import deterministic

from worker.training.data.batching import MicroBatch


def make_deterministic(seed: int, *, threads: int) -> None:
    """Seed every generator of the process, and fix what else can change a result.

    Args:
        seed: seed of the job.
        threads: number of processor threads. They share each sum, so their number changes a result.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    # This fills every new tensor with NaN to expose reads of it, which costs a pass over memory.
    deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] - a property of the module


def seed_torch(*key: int) -> None:
    """Seed torch by a key, such as seed and step, so that each key has its own numbers."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


_STATE_WORDS = 4
"""64-bit numbers that are the state of the generator SFC64."""

_LEVELS = 1 << 16
"""Values of the random numbers, which have 16 bits. A probability of 0.05 becomes 0.050003, and the
other inputs are scaled by that rounded value, so the mean is exact."""


@dataclass(frozen=True, slots=True)
class DropoutKey:
    """Names the dropout masks of one optimizer step."""

    seed: int
    step: int


@dataclass(frozen=True, slots=True)
class DropoutRate:
    """The probability with which a number is zeroed."""

    threshold: int
    """Numbers whose 16 random bits, as a signed integer, are below it are zeroed."""
    scale: float
    """Factor of the numbers that are not zeroed."""

    @classmethod
    def of(cls, probability: float) -> "DropoutRate":
        levels = round(probability * _LEVELS)
        return cls(levels - _LEVELS // 2, _LEVELS / (_LEVELS - levels))


class Masks:
    """The masks of a micro-batch, layer by layer. A layer's masks can be drawn more than once.

    Args:
        key: names the masks of the step.
        batch: the micro-batch. Nothing is drawn for its padding, which is never zeroed.
        rate: how many inputs are zeroed.
        layers: number of decoder layers.
    """

    def __init__(
        self, key: DropoutKey, batch: MicroBatch, rate: DropoutRate, *, layers: int
    ) -> None:
        self._rate = rate
        self._shape = batch.input_ids_BL.shape
        self._lengths = batch.lengths
        sequences = (
            np.random.SeedSequence([key.seed, key.step, index]) for index in batch.examples
        )
        # One generator state per layer and example, because seeding would take 30 times as long.
        self._states = [
            sequence.generate_state(layers * _STATE_WORDS, np.uint64).reshape(layers, _STATE_WORDS)
            for sequence in sequences
        ]
        self._generator = np.random.SFC64(0)

    def draw(self, layer: int, widths: Sequence[int]) -> list[Tensor]:
        """Draw the masks of one layer.

        Args:
            layer: index of the layer.
            widths: number of inputs of each adapted linear layer.

        Returns:
            `is_kept_BLI` for each adapted linear layer: B examples, L tokens, I inputs.
        """
        masks = [np.ones((*self._shape, width), np.bool_) for width in widths]
        for row, (states, length) in enumerate(zip(self._states, self._lengths, strict=True)):
            self._set_state(states[layer])
            for is_kept_BLI, width in zip(masks, widths, strict=True):
                bits = self._draw(length * width).reshape(length, width)
                np.greater_equal(bits, self._rate.threshold, out=is_kept_BLI[row, :length])
        return [torch.from_numpy(is_kept_BLI) for is_kept_BLI in masks]

    def _set_state(self, words: np.ndarray) -> None:
        self._generator.state = {
            "bit_generator": "SFC64",
            "state": {"state": words},
            "has_uint32": 0,
            "uinteger": 0,
        }

    def _draw(self, count: int) -> np.ndarray:
        return self._generator.random_raw(-(-count // 4)).view(np.int16)[:count]
