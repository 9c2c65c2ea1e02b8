"""Takes the steps of a job, one at a time, and counts them.

The schedule says which step has which learning rate, and what is due after which step. Steps count
from 1.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import assert_never

import numpy as np

from app.core.job.frozen import Frozen
from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import TrainingConfig
from worker.training.data.batching import (
    MicroBatch,
    evaluated_together,
    read_micro_batches,
    rows_of,
    shuffled_batches,
)
from worker.training.data.dataset import TokenizedData
from worker.training.failures import base_not_finite, diverged
from worker.training.model.forward import Forward
from worker.training.model.randomness import DropoutKey
from worker.training.step.objective import Objective, Preferences, References, score_rows
from worker.training.step.step import (
    SUPERVISED,
    Evaluation,
    NotFiniteError,
    StepResult,
    build_optimizer,
    evaluate,
    train_step,
)

_STEPS_ASKED = 100_000
"""Most steps for which the schedule is asked what is due. The others are taken to be like them."""


class StepSchedule:
    """The learning rate of each step, and after which steps a job evaluates and saves a checkpoint.

    Attributes:
        total_steps: number of optimizer steps of the job.
    """

    def __init__(self, config: TrainingConfig, *, examples: int, has_validation: bool) -> None:
        """The schedule of a job that trains on `examples` examples."""
        self._config = config
        self._has_validation = has_validation
        self._steps_per_epoch = math.ceil(examples / config.batch_size)
        self.total_steps = config.total_steps(examples)

    @cached_property
    def passes(self) -> tuple[float, float]:
        """How often the whole job reads its training data, and how often its validation data."""
        steps = self.total_steps / self._steps_per_epoch
        first = int(self._config.has_reference)
        return steps + first, 1 + self.count(self.is_evaluation) + first

    def count(self, is_due: Callable[[int], bool]) -> int:
        """In how many steps of the job something is due."""
        counted = min(self.total_steps, _STEPS_ASKED)
        return round(sum(map(is_due, range(1, counted + 1))) * self.total_steps / counted)

    def is_checkpoint(self, step: int) -> bool:
        return (
            step % self._config.checkpoint_steps == 0
            or step % self._steps_per_epoch == 0
            or step == self.total_steps
        )

    def is_evaluation(self, step: int) -> bool:
        return self._has_validation and (
            self.is_checkpoint(step) or self._is_extra_evaluation(step)
        )

    def _is_extra_evaluation(self, step: int) -> bool:
        """Whether one of `n_evals` equal parts of the job, or `eval_steps`, ends with this step."""
        every, parts = self._config.eval_steps, self._config.n_evals or 0
        if every is not None and step % every == 0:
            return True
        return step * parts // self.total_steps > (step - 1) * parts // self.total_steps

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step. It equals that of `transformers.get_scheduler`."""
        return self._config.learning_rate * self._fraction_of_peak(step - 1)

    @property
    def _warmup_steps(self) -> int:
        steps = self._config.warmup_steps
        return math.ceil(self.total_steps * self._config.warmup_ratio) if steps is None else steps

    def _fraction_of_peak(self, taken: int) -> float:
        """Fraction after `taken` steps. As in transformers, `constant` has no warmup."""
        kind = self._config.lr_scheduler
        warmup_steps = self._warmup_steps
        if kind == "constant":
            return 1.0
        if taken < warmup_steps:
            return taken / warmup_steps
        if kind == "constant_with_warmup":
            return 1.0
        progress = (taken - warmup_steps) / max(1, self.total_steps - warmup_steps)
        if kind == "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * progress))
        elif kind == "linear":
            left = 1.0 - progress
        else:
            assert_never(kind)
        lowest = self._config.min_lr_ratio
        return left * (1.0 - lowest) + lowest


class Progress(Frozen):
    """Progress of a job over all its attempts."""

    step: int = 0
    """Optimizer steps taken."""
    examples_seen: int = 0
    tokens_seen: int = 0
    """Tokens read in training, padding not counted."""
    elapsed_s: float = 0.0
    """Seconds spent in the training loop; neither loading, nor evaluation, nor saving."""


class Trainer:
    """Owns the optimizer, the position in the data, and the clock of the training loop.

    Attributes:
        model: the model with the adapter that is trained.
        optimizer: updates the adapter.
        progress: progress after the last step.
        references: for each dataset, by its digest, the log-probability of each answer by the
            reference of preference tuning. Empty if there is none.
        computed: tokens that this attempt has computed in training, and those that it has read.
    """

    def __init__(
        self,
        forward: Forward,
        data: TokenizedData,
        config: TrainingConfig,
        *,
        schedule: StepSchedule,
        pad_token_id: int,
        micro_batch_tokens: int,
    ) -> None:
        self.model = forward.model
        self.optimizer = build_optimizer(forward.model, config)
        self._forward = forward
        self.progress = Progress()
        self.references = References()
        self.computed = (0, 0)
        self._data = data
        self._config = config
        self._schedule = schedule
        self._pad_token_id = pad_token_id
        self._micro_batch_tokens = micro_batch_tokens
        self._batches = self._batches_after(0)

    def resume(self, progress: Progress) -> None:
        """Continue after `progress`, at its position in the data."""
        self.progress = progress
        self._batches = self._batches_after(progress.step)

    def score_reference(self, data: TokenizedData, report: Callable[[int], None]) -> None:
        """Let the model, as it is now, be the reference of a dataset of pairs.

        Args:
            data: the dataset.
            report: called with the number of pairs of each micro-batch, once it is done.
        """
        batches = self.read_all(data, report)
        self.references[data.sha256] = score_rows(self._forward, batches, rows=len(data))

    def count(self, data: TokenizedData) -> int:
        """Number of examples of a dataset."""
        return len(data) // self._config.rows_per_example

    def read_all(
        self, data: TokenizedData, report: Callable[[int], None] | None = None
    ) -> Iterator[MicroBatch]:
        """Read a whole dataset in micro-batches, in an order of its own that never changes.

        Args:
            data: the dataset.
            report: called with the number of examples of each micro-batch, once it is done.
        """
        for indices in evaluated_together(data.lengths, self._config.rows_per_example):
            for batch in self._read(data, indices):
                yield batch
                if report is not None:
                    report(len(batch.examples) // self._config.rows_per_example)

    def take_step(self) -> StepMetrics:
        """Train on the next batch.

        Raises:
            TrainingFailedError: `loss_not_finite`.
        """
        started = time.perf_counter()
        done = self.progress
        step = done.step + 1
        rate = self._schedule.learning_rate(step)
        examples = next(self._batches)
        indices = rows_of(examples, self._config.rows_per_example)
        batches = list(self._read(self._data, indices))
        result = self._train_on(batches, step, rate)
        tokens = int(self._data.lengths[indices].sum())
        computed, read = self.computed
        self.computed = (computed + sum(one.computed_tokens for one in batches), read + tokens)
        self.progress = done = Progress(
            step=step,
            examples_seen=done.examples_seen + len(examples),
            tokens_seen=done.tokens_seen + tokens,
            elapsed_s=done.elapsed_s + time.perf_counter() - started,
        )
        return StepMetrics(
            step=step,
            epoch=done.examples_seen / self.count(self._data),
            train_loss=result.loss,
            train_mean_token_accuracy=result.accuracy,
            learning_rate=rate,
            grad_norm=result.grad_norm,
            tokens_seen=done.tokens_seen,
            elapsed_s=done.elapsed_s,
            train_rewards=result.rewards,
        )

    def evaluate(self, data: TokenizedData) -> Evaluation:
        """Loss and accuracy over a whole file, after the last step, or before the first one.

        Raises:
            TrainingFailedError: `loss_not_finite`.
        """
        evaluation = evaluate(self._forward, self.read_all(data), self._objective_on(data))
        if not math.isfinite(evaluation.loss):
            if self.progress.step == 0:
                raise base_not_finite(evaluation.loss)
            what = f"validation loss {evaluation.loss}"
            rate = self._config.learning_rate
            raise diverged(self.progress.step, what, learning_rate=rate)
        return evaluation

    def _batches_after(self, step: int) -> Iterator[np.ndarray]:
        size, seed = self._config.batch_size, self._config.seed
        return shuffled_batches(self.count(self._data), size, seed=seed, after_step=step)

    def _objective_on(self, data: TokenizedData) -> Objective:
        settings = self._config.dpo
        if settings is None:
            return SUPERVISED
        reference_R = None if settings.reference_free else self.references[data.sha256]
        return Preferences(settings, reference_R)

    def _read(self, data: TokenizedData, indices: np.ndarray) -> Iterator[MicroBatch]:
        """Read rows in micro-batches that fit in memory."""
        return read_micro_batches(
            data,
            indices,
            rows_per_example=self._config.rows_per_example,
            micro_batch_tokens=self._micro_batch_tokens,
            is_padded=self._forward.is_padded,
            pad_token_id=self._pad_token_id,
        )

    def _train_on(self, batches: Sequence[MicroBatch], step: int, rate: float) -> StepResult:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_ratio"]
        try:
            return train_step(
                self._forward,
                self.optimizer,
                batches,
                dropout=DropoutKey(self._config.seed, step),
                max_grad_norm=self._config.max_grad_norm,
                objective=self._objective_on(self._data),
            )
        except NotFiniteError as error:
            raise diverged(step, str(error), learning_rate=self._config.learning_rate) from error
