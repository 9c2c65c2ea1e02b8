"""How long a job computes on a processor, from what it has to compute and the processor's speed.

Matrix products are counted. What is between them takes time in proportion to the numbers that pass
from layer to layer. `make estimates` compares the result with real jobs.
"""

from dataclasses import dataclass

import numpy as np

from worker.training.compute.hardware import Speeds
from worker.training.compute.plan import ComputePlan
from worker.training.data.batching import GROUP_COST, cut_examples

_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_PRODUCTS = 0.85
"""Fraction of the measured speed of one thread that the products of a layer reach on each thread of
several."""

_BETWEEN_PER_S = {("fast", True): 17e6, ("fast", False): 9e6, ("plain", False): 4.5e6}
"""Numbers between two layers (tokens x layers x width) for which one thread of a current processor
spends a second between the matrix products of a training step, by layers and compilation. Measured
with the smallest base model."""

_EVALUATION = 0.4
"""Part of that time that the forward pass alone takes."""

_UPDATED_PER_S = 1.5e8
"""Parameters of an adapter that the optimizer updates in a second."""


_ROWS_EVALUATED = 2000
"""Most validation rows whose micro-batches are counted."""

_LEARNED = 0.5
"""Fraction of the tokens that are learned, where nobody has counted them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a file, or a sample of them that stands for all. A preference has two."""

    lengths: np.ndarray
    """Tokens of each row, after truncation."""
    count: int
    """Number of rows in the file. It is larger than the number of lengths for a sample."""
    learned_tokens: int | None = None
    """Tokens among `lengths` that are learned. None if nobody has counted them."""

    @property
    def tokens(self) -> int:
        """Tokens of the file."""
        return round(float(self.lengths.mean()) * self.count)

    @property
    def learned(self) -> float:
        """Fraction of the tokens that are learned."""
        if self.learned_tokens is None:
            return _LEARNED
        return self.learned_tokens / int(self.lengths.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds that the computations of a job take on a processor that does nothing else."""

    plan: ComputePlan
    speeds: Speeds
    threads: int

    def step(self, examples: np.ndarray, lengths: np.ndarray, *, learned: float) -> float:
        """An optimizer step.

        Args:
            examples: index of each example of the step.
            lengths: tokens of each row of the file.
            learned: fraction of the tokens that are learned.
        """
        passes = 3 if self.plan.gradient_checkpointing else 2
        update = self.plan.footprint.trained_parameters / _UPDATED_PER_S
        return update + sum(
            self._micro_batch(lengths[piece], learned=learned, passes=passes, between=1.0)
            for piece in self._cut(examples, lengths)
        )

    def evaluation(self, rows: Rows) -> float:
        """An evaluation on a whole file."""
        lengths = rows.lengths[:_ROWS_EVALUATED]
        examples = np.arange(len(lengths) // self._rows_per_example)
        seconds = sum(
            self._micro_batch(lengths[piece], learned=rows.learned, passes=1, between=_EVALUATION)
            for piece in self._cut(examples, lengths)
        )
        return seconds * rows.count / len(lengths)

    def _cut(self, examples: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """The rows of each micro-batch."""
        pieces = cut_examples(
            examples,
            lengths,
            rows_per_example=self._rows_per_example,
            micro_batch_tokens=self.plan.micro_batch_tokens,
        )
        return list(pieces)

    @property
    def _rows_per_example(self) -> int:
        return self.plan.footprint.rows_per_example

    def _micro_batch(
        self, lengths: np.ndarray, *, learned: float, passes: int, between: float
    ) -> float:
        """A micro-batch.

        Args:
            lengths: tokens of its examples.
            learned: fraction of them that are learned.
            passes: how often each product with a weight of the base model is computed.
            between: part of a training step's time between the products.
        """
        model = self.plan.footprint.model
        longest = int(lengths.max())
        tokens = len(lengths) * longest + GROUP_COST
        attention = 4 * longest * model.heads * model.head_width * model.layers
        is_training = passes > 1
        share = self.plan.footprint.backward_layers / model.layers if is_training else 1.0
        products = tokens * (
            2 * (1 + (passes - 1) * share) * self._weights
            + (passes + 1 if is_training else 1) * 2 * self._adapter
            + (1 + passes * share if is_training else 1) * attention
        )
        products += learned * lengths.sum() * 2 * min(passes, 2) * model.vocabulary * model.width
        products += self._reweighting * (3 if is_training else 1)
        numbers = tokens * model.layers * model.width
        between = _EVALUATION + (between - _EVALUATION) * share
        return float(products / self._speed + between * numbers / self._between_per_s)

    @property
    def _weights(self) -> int:
        """Number of weights of the base model that each token is multiplied with."""
        model = self.plan.footprint.model
        shapes = [model.linear(name) for name in _LINEARS]
        in_layers = model.layers * sum(inputs * outputs for inputs, outputs in shapes)
        return min(in_layers, model.parameters)

    @property
    def _adapter(self) -> int:
        return self.plan.footprint.trained_parameters

    @property
    def _reweighting(self) -> int:
        """Operations of DoRA, which computes each adapted weight once for a micro-batch."""
        footprint = self.plan.footprint
        if not footprint.lora.use_dora:
            return 0
        shapes = [footprint.model.linear(name) for name in footprint.lora.target_modules]
        adapted = footprint.adapted_layers * sum(inputs * outputs for inputs, outputs in shapes)
        return 2 * footprint.lora.saved_rank * adapted

    @property
    def _speed(self) -> float:
        """Speed of the products, in FLOP/s."""
        return getattr(self.speeds, self.plan.dtype) * 1e9 * self.threads * _PRODUCTS

    @property
    def _between_per_s(self) -> float:
        return _BETWEEN_PER_S[self.plan.forward, self.plan.compile] * self.threads
