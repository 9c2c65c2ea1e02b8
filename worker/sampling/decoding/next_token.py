"""Chooses the next token from logits.

Dimension key:
    V  vocabulary
    C  candidates, most likely first
"""

import math
import random

import torch
from torch import Tensor

from app.core.sampling.messages import SamplingParameters
from worker.sampling.decoding.refusals import model_is_broken

_COLDEST = 1e-4
"""Temperature below which the most likely token is chosen: no other one has a chance."""

_CANDIDATE_FLOORS = (1e-2, 1e-4, 0.0)
"""Weights, relative to the most likely token, from which a token is a candidate of top_p. Nearly
always the first tokens suffice, and sorting those takes no time."""


class TokenChooser:
    """Chooses the tokens of one answer."""

    def __init__(self, parameters: SamplingParameters, *, choice: int = 0, vocabulary: int) -> None:
        """Prepare to choose.

        Args:
            parameters: temperature, top_p, seed, penalties and biases.
            choice: number of the answer. Each answer to a request has random numbers of its own.
            vocabulary: number of logits.
        """
        self._parameters = parameters
        # The same numbers on every machine, which a seed promises; nobody keeps a secret with them.
        seed = None if parameters.seed is None else f"{parameters.seed}/{choice}"
        self._random = random.Random(seed)  # noqa: S311
        self._chosen: set[int] = set()
        self._shift_V = self._biases(vocabulary)

    def choose(self, logits_V: Tensor, allowed_V: Tensor | None = None) -> int:
        """Choose a token.

        Args:
            logits_V: float32, on the CPU. They are not changed.
            allowed_V: whether each token may be chosen; None if all of them may.

        Raises:
            RefusedError: the logits are not numbers.
        """
        scores_V = logits_V if self._shift_V is None else logits_V + self._shift_V
        if allowed_V is not None:
            scores_V = scores_V.masked_fill(~allowed_V, -math.inf)
        best = int(scores_V.argmax())
        peak = float(scores_V[best])
        if not math.isfinite(peak):
            raise model_is_broken()
        is_greedy = self._parameters.temperature < _COLDEST
        token = best if is_greedy else self._sample(scores_V, peak)
        self._penalise(token)
        return token

    def _sample(self, scores_V: Tensor, peak: float) -> int:
        weights_V = ((scores_V - peak) / self._parameters.temperature).exp_()
        if self._parameters.top_p == 1:
            return self._draw(weights_V.cumsum(0, dtype=torch.float64))
        tokens_C, mass_C = _nucleus(weights_V, self._parameters.top_p)
        return int(tokens_C[self._draw(mass_C)])

    def _draw(self, mass: Tensor) -> int:
        """An index, each with the probability by which the cumulated mass grows there."""
        total = float(mass[-1])
        # What is drawn lies below the total, also when rounded, so an index without mass is never
        # drawn.
        drawn = min(self._random.random() * total, math.nextafter(total, 0))
        return int(torch.searchsorted(mass, drawn, right=True))

    def _biases(self, vocabulary: int) -> Tensor | None:
        """What is added to the logits before the first token; None if nothing ever is."""
        parameters = self._parameters
        if not (
            parameters.logit_bias or parameters.frequency_penalty or parameters.presence_penalty
        ):
            return None
        shift_V = torch.zeros(vocabulary)
        for token, bias in parameters.logit_bias.items():
            shift_V[token] = bias
        return shift_V

    def _penalise(self, token: int) -> None:
        """Make a token that was chosen less likely, by OpenAI's formula."""
        if self._shift_V is None:
            return
        self._shift_V[token] -= self._parameters.frequency_penalty
        if token not in self._chosen:
            self._chosen.add(token)
            self._shift_V[token] -= self._parameters.presence_penalty


def _nucleus(weights_V: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest tokens that have `top_p` of the weight together.

    Args:
        weights_V: of all tokens; the largest is 1.
        top_p: a share of the weight.

    Returns:
        The tokens, most likely first, and for each the weight of all up to it.
    """
    needed = top_p * float(weights_V.sum(dtype=torch.float64))
    tokens_C = mass_C = torch.empty(0)
    for floor in _CANDIDATE_FLOORS:
        tokens_C = (weights_V >= floor).nonzero().squeeze(1)
        weights_C, order_C = weights_V[tokens_C].sort(descending=True, stable=True)
        tokens_C, mass_C = tokens_C[order_C], weights_C.cumsum(0, dtype=torch.float64)
        if float(mass_C[-1]) >= needed:
            break
    kept = int(torch.searchsorted(mass_C, needed)) + 1
    return tokens_C[:kept], mass_C[:kept]
