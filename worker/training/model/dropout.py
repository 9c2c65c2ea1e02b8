"""Dropout masks as a function of seed, step, example and layer alone.

So a step is the same however its batch is cut into micro-batches, and whatever ran before it. A
layer that is computed a second time, to save memory, is the same again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.training.data.batching import MicroBatch

_STATE_WORDS = 4
"""64-bit numbers that are the state of the generator SFC64."""

_LEVELS = 1 << 16
"""Values of the random numbers, which have 16 bits. A probability of 0.05 becomes 0.050003, and the
other inputs are scaled by the latter, so the mean is exact."""


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
    """What the others are multiplied by."""

    @classmethod
    def of(cls, probability: float) -> "DropoutRate":
        levels = round(probability * _LEVELS)
        return cls(levels - _LEVELS // 2, _LEVELS / (_LEVELS - levels))


class Masks:
    """The masks of a micro-batch, layer by layer, as often as they are asked for.

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
        # A state of the generator for each layer of each example: to seed it takes 30 times longer.
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
