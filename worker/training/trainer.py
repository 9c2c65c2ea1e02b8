"""The training loop of a job, one step at a time, and what it counts."""

import math
import time

import numpy as np
from peft import PeftModel

from app.core.loss_log import StepMetrics
from app.core.training_config import TrainingConfig
from worker.training.batching import collate, cut_by_length, shuffled_batches
from worker.training.data import TokenizedData
from worker.training.evaluate import Evaluation, evaluate
from worker.training.failures import TrainingFailedError
from worker.training.plan import Plan
from worker.training.randomness import seed_step
from worker.training.schedule import learning_rate
from worker.training.step import (
    NotFiniteError,
    StepResult,
    build_optimizer,
    set_learning_rate,
    train_step,
)


class Trainer:
    """Owns the optimizer, the position in the data, and the clock of the training loop.

    Attributes:
        tokens_seen: tokens read in training so far, padding not counted.
    """

    def __init__(
        self,
        model: PeftModel,
        data: TokenizedData,
        config: TrainingConfig,
        *,
        plan: Plan,
        pad_token_id: int,
    ) -> None:
        self._model = model
        self._data = data
        self._config = config
        self._plan = plan
        self._pad_token_id = pad_token_id
        self._optimizer = build_optimizer(model, config)
        self._batches = shuffled_batches(len(data), config.batch_size, seed=config.seed)
        self._examples_seen = 0
        self._elapsed_s = 0.0
        self.tokens_seen = 0
        model.train()

    def take_step(self, step: int) -> StepMetrics:
        """Train on the next batch.

        Raises:
            TrainingFailedError: `loss_not_finite`.
        """
        started = time.perf_counter()
        rate = learning_rate(step, self._config, total_steps=self._plan.total_steps)
        indices = next(self._batches)
        result = self._train_on(indices, step, rate)
        self._examples_seen += len(indices)
        self.tokens_seen += int(self._data.lengths[indices].sum())
        self._elapsed_s += time.perf_counter() - started
        return StepMetrics(
            step=step,
            epoch=self._examples_seen / len(self._data),
            train_loss=result.loss,
            train_mean_token_accuracy=result.accuracy,
            learning_rate=rate,
            grad_norm=result.grad_norm,
            tokens_seen=self.tokens_seen,
            elapsed_s=self._elapsed_s,
        )

    def evaluate(self, data: TokenizedData, step: int) -> Evaluation:
        """Loss and accuracy over a whole file, after `step`.

        Raises:
            TrainingFailedError: `loss_not_finite`.
        """
        evaluation = evaluate(self._model, data, pad_token_id=self._pad_token_id)
        if not math.isfinite(evaluation.loss):
            raise _diverged(step, f"validation loss {evaluation.loss}", self._config)
        return evaluation

    def _train_on(self, indices: np.ndarray, step: int, rate: float) -> StepResult:
        micro_batches = [
            collate([self._data.read(i) for i in piece], pad_token_id=self._pad_token_id)
            for piece in cut_by_length(indices, self._data.lengths)
        ]
        set_learning_rate(self._optimizer, rate)
        seed_step(self._config.seed, step)
        try:
            return train_step(
                self._model,
                self._optimizer,
                micro_batches,
                max_grad_norm=self._config.max_grad_norm,
            )
        except NotFiniteError as error:
            raise _diverged(step, str(error), self._config) from error


def _diverged(step: int, what: str, config: TrainingConfig) -> TrainingFailedError:
    return TrainingFailedError(
        "loss_not_finite",
        f"Training diverged at step {step:,} ({what}). Lower learning_rate, which is "
        f"{config.learning_rate:g}, or give it a warmup_ratio.",
        param="hyperparameters.learning_rate",
    )
