"""How long a job computes on a processor, from what it has to compute and the processor's speed.

Matrix products are counted. What is between them takes time in proportion to the numbers that pass
from layer to layer. `make estimates` compares the result with real jobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.core.job.estimate import Duration
from worker.training.compute.hardware import Speeds
from worker.training.compute.plan import ComputePlan
from worker.training.data.batching import GROUP_COST

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

_UNCERTAINTY = 0.25
"""Fraction by which a duration may be off on a machine that does nothing else. It may be off by
more where two threads share a core."""

_UPDATED_PER_S = 1.5e8
"""Parameters of an adapter that the optimizer updates in a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds that the computations of a job take on a processor that does nothing else."""

    plan: ComputePlan
    speeds: Speeds
    threads: int

    def step(self, rows: Sequence[np.ndarray], *, learned: float, is_kept: bool = False) -> float:
        """An optimizer step.

        Args:
            rows: tokens of each row of the step.
            learned: fraction of the tokens that are learned.
            is_kept: whether the outputs of the layers below the first adapter are on the disk.
        """
        passes = 3 if self.plan.gradient_checkpointing else 2
        update = self.plan.footprint.trained_parameters / _UPDATED_PER_S
        part = self._upper if is_kept else 1.0
        return update + self._read(rows, learned=learned, passes=passes, part=part)

    def evaluation(
        self, rows: Sequence[np.ndarray], *, learned: float, is_kept: bool = False
    ) -> float:
        """An evaluation on rows that are evaluated together. For the arguments, see `step`."""
        part = self._upper if is_kept else 1.0
        return self._read(rows, learned=learned, passes=1, part=part)

    def keeping(self, rows: Sequence[np.ndarray]) -> float:
        """The layers below the first adapter, for rows that are evaluated together."""
        return self._read(rows, learned=0.0, passes=1, part=1.0 - self._upper)

    @property
    def _upper(self) -> float:
        """Part of the layers that have a backward pass."""
        footprint = self.plan.footprint
        return footprint.backward_layers / footprint.model.layers

    def _read(
        self, rows: Sequence[np.ndarray], *, learned: float, passes: int, part: float
    ) -> float:
        """The micro-batches of these rows.

        Args:
            rows: tokens of each row.
            learned: fraction of them that are learned.
            passes: how often each product with a weight of the base model is computed.
            part: part of the layers that a forward pass computes.
        """
        return sum(
            self._micro_batch(
                np.array([len(rows[row]) for row in piece.rows]),
                piece.tokens,
                learned=learned,
                passes=passes,
                part=part,
            )
            for piece in self.plan.cut(rows)
        )

    def _micro_batch(
        self, lengths: np.ndarray, computed: int, *, learned: float, passes: int, part: float
    ) -> float:
        model = self.plan.footprint.model
        # For rows of one length, this is their length.
        seen = float(np.square(lengths).sum() / lengths.sum())
        tokens = computed + GROUP_COST
        attention = 4 * seen * model.heads * model.head_width * model.layers
        is_training = passes > 1
        backward = self._upper if is_training else 0.0
        products = tokens * (
            2 * (part + (passes - 1) * backward) * self._weights
            + (passes + 1 if is_training else 1) * 2 * self._adapter
            + (part + passes * backward) * attention
        )
        products += learned * lengths.sum() * 2 * min(passes, 2) * model.vocabulary * model.width
        products += self._reweighting * (3 if is_training else 1)
        numbers = tokens * model.layers * model.width
        between = _EVALUATION * part + (1 - _EVALUATION) * backward
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


def with_uncertainty(seconds: float) -> Duration:
    """A duration of so many seconds, as exactly as it is known."""
    low, high = (1 - _UNCERTAINTY) * seconds, (1 + _UNCERTAINTY) * seconds
    return Duration(seconds=round(seconds, 1), low=round(low, 1), high=round(high, 1))
