"""Every random number of a job: a function of the seed and of what it is drawn for.

Nothing depends on what was drawn before, so a resumed job draws what an uninterrupted job draws.
The dropout masks depend on seed, step, example and layer alone, and a token that several rows of a
step share counts as one of a single example. So a step is the same however its batch is cut into
micro-batches, and a layer that is computed a second time, to save memory, is the same again.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils import deterministic

from worker.training.data.beginnings import DrawnTokens


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
        drawn: which masks the tokens of the micro-batch have, all tokens in their order.
        rate: how many inputs are zeroed.
        layers: number of decoder layers.
    """

    def __init__(
        self, key: DropoutKey, drawn: Sequence[DrawnTokens], rate: DropoutRate, *, layers: int
    ) -> None:
        self._rate = rate
        self._tokens = drawn[-1].end
        self._drawn: dict[int, list[DrawnTokens]] = {}
        for one in drawn:
            self._drawn.setdefault(one.example, []).append(one)
        # One generator state per layer and example, because seeding would take 30 times as long.
        self._states = [
            np.random.SeedSequence([key.seed, key.step, example])
            .generate_state(layers * _STATE_WORDS, np.uint64)
            .reshape(layers, _STATE_WORDS)
            for example in self._drawn
        ]
        self._generator = np.random.SFC64(0)

    def draw(self, layer: int, widths: Sequence[int]) -> list[Tensor]:
        """Draw the masks of one layer.

        Args:
            layer: index of the layer.
            widths: number of inputs of each adapted linear layer.

        Returns:
            `is_kept_TI` for each adapted linear layer: T tokens, I inputs.
        """
        masks = [np.empty((self._tokens, width), np.bool_) for width in widths]
        starts = np.cumsum([0, *widths])
        for states, pieces in zip(self._states, self._drawn.values(), strict=True):
            self._set_state(states[layer])
            tokens = max(one.offset + one.end - one.start for one in pieces)
            bits = self._draw(tokens * starts[-1]).reshape(tokens, starts[-1])
            for one in pieces:
                rows = bits[one.offset : one.offset + one.end - one.start]
                for is_kept_TI, (start, end) in zip(masks, pairwise(starts), strict=True):
                    np.greater_equal(
                        rows[:, start:end],
                        self._rate.threshold,
                        out=is_kept_TI[one.start : one.end],
                    )
        return [torch.from_numpy(is_kept_TI) for is_kept_TI in masks]

    def _set_state(self, words: np.ndarray) -> None:
        self._generator.state = {
            "bit_generator": "SFC64",
            "state": {"state": words},
            "has_uint32": 0,
            "uinteger": 0,
        }

    def _draw(self, count: int) -> np.ndarray:
        return self._generator.random_raw(-(-count // 4)).view(np.int16)[:count]
