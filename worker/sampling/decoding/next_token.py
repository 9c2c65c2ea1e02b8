"""Chooses the next token from logits, in a fraction of the time that a sort would take.

All of it is numpy in one thread: the threads of torch would wait for each other longer than they
compute.

Dimension key:
    V  vocabulary
    C  candidates
"""

import math
import random

import numpy as np
from numpy.typing import NDArray

from app.core.sampling.messages import SamplingParameters
from worker.sampling.decoding.refusals import model_is_broken

Floats = NDArray[np.float32]

_COLDEST = 1e-4
"""Temperature below which the most likely token is chosen: no other one has a chance."""

_BLOCK = 512
"""Number of weights in a block. A block is drawn, then an index in it: to add up all weights one
after the other takes several times as long."""

_LIKELY = 1e-3
"""Weight, relative to the most likely token, of those that nearly always have the share of top_p.
"""
_BUCKETS = 2048
_BUCKETS_PER_UNIT = 64
"""Buckets for the logarithm of a weight; a weight below exp(-32) is in the last one."""


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
        self._shift_V = _biases(parameters, vocabulary)
        # The same memory each time: to get that of large arrays anew costs more than to fill it.
        self._scores_V = np.empty(vocabulary, np.float32)
        self._weights_V = np.empty(vocabulary, np.float32)

    def choose(self, logits_V: Floats, allowed_V: NDArray[np.bool_] | None = None) -> int:
        """Choose a token.

        Args:
            logits_V: of the next token. They are not changed.
            allowed_V: whether each token may be chosen; None if all of them may.

        Raises:
            RefusedError: the logits are not numbers.
        """
        scores_V = logits_V
        if self._shift_V is not None:
            scores_V = np.add(scores_V, self._shift_V, out=self._scores_V)
        if allowed_V is not None:
            np.copyto(self._scores_V, scores_V)
            scores_V = self._scores_V
            scores_V[~allowed_V] = -math.inf
        best = int(scores_V.argmax())
        peak = float(scores_V[best])
        if not math.isfinite(peak):
            raise model_is_broken()
        is_greedy = self._parameters.temperature < _COLDEST
        token = best if is_greedy else self._sample(scores_V, peak)
        self._penalise(token)
        return token

    def _sample(self, scores_V: Floats, peak: float) -> int:
        with np.errstate(over="ignore"):  # what is that unlikely has no weight
            log_weights_V = np.subtract(scores_V, np.float32(peak), out=self._scores_V)
            log_weights_V /= np.float32(self._parameters.temperature)
        weights_V = np.exp(log_weights_V, out=self._weights_V)
        if self._parameters.top_p == 1:
            return self._draw(weights_V)
        tokens_C = _nucleus(log_weights_V, weights_V, self._parameters.top_p)
        return int(tokens_C[self._draw(weights_V[tokens_C])])

    def _draw(self, weights: Floats) -> int:
        """An index, each with the probability of its weight."""
        end = len(weights) // _BLOCK * _BLOCK
        blocks = [*weights[:end].reshape(-1, _BLOCK).sum(1), weights[end:].sum()]
        start = self._draw_from_few(np.array(blocks)) * _BLOCK
        return start + self._draw_from_few(weights[start : start + _BLOCK])

    def _draw_from_few(self, weights: Floats) -> int:
        mass = weights.cumsum(dtype=np.float64)
        total = float(mass[-1])
        # What is drawn lies below the total, also when rounded, so an index without weight is never
        # drawn.
        drawn = min(self._random.random() * total, math.nextafter(total, 0))
        return int(mass.searchsorted(drawn, "right"))

    def _penalise(self, token: int) -> None:
        """Make a token that was chosen less likely, by OpenAI's formula."""
        if self._shift_V is None:
            return
        self._shift_V[token] -= self._parameters.frequency_penalty
        if token not in self._chosen:
            self._chosen.add(token)
            self._shift_V[token] -= self._parameters.presence_penalty


def _biases(parameters: SamplingParameters, vocabulary: int) -> Floats | None:
    """What is added to the logits of the first token; None if nothing is added to any."""
    penalties = parameters.frequency_penalty, parameters.presence_penalty
    if not parameters.logit_bias and not any(penalties):
        return None
    shift_V = np.zeros(vocabulary, np.float32)
    for token, bias in parameters.logit_bias.items():
        shift_V[token] = bias
    return shift_V


def _nucleus(log_weights_V: Floats, weights_V: Floats, top_p: float) -> NDArray[np.intp]:
    """The fewest tokens that have `top_p` of the weight together.

    Only tokens that are about as likely as the last of them are sorted.

    Args:
        log_weights_V: logarithms of the weights; the largest is 0.
        weights_V: the weights.
        top_p: a share of the weight.
    """
    total = float(weights_V.sum())
    needed = top_p * total
    # All tokens below the second of these weights have less than the rest of the weight together.
    for smallest in (_LIKELY, (1 - top_p) * total / len(weights_V)):
        tokens_C = np.flatnonzero(weights_V >= smallest)
        weights_C = weights_V[tokens_C]
        if weights_C.sum(dtype=np.float64) >= needed:
            break
    buckets_C = (log_weights_V[tokens_C] * -_BUCKETS_PER_UNIT).clip(max=_BUCKETS - 1)
    buckets_C = buckets_C.astype(np.intp)
    mass = np.bincount(buckets_C, weights_C, _BUCKETS).cumsum()
    last = min(int(mass.searchsorted(needed)), _BUCKETS - 1)
    missing = needed - (mass[last - 1] if last else 0)
    last_C = np.flatnonzero(buckets_C == last)
    last_C = last_C[np.argsort(-weights_C[last_C], kind="stable")]
    kept = int(weights_C[last_C].cumsum(dtype=np.float64).searchsorted(missing)) + 1
    kept_C = np.concatenate((np.flatnonzero(buckets_C < last), last_C[:kept]))
    return tokens_C[kept_C]
