"""The schedule of a job: which step has which learning rate, and what is due after which step.

Steps count from 1. The learning rate equals that of `transformers.get_scheduler`; a test checks it.
"""

import math
from dataclasses import dataclass

from app.core.job.training_config import LrScheduler, TrainingConfig


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """How many steps a job has, and after which of them it evaluates and saves a checkpoint."""

    total_steps: int
    steps_per_epoch: int
    checkpoint_steps: int
    n_evals: int | None
    """Evaluations besides those at each epoch's end and each checkpoint."""
    has_validation: bool

    @classmethod
    def of(cls, config: TrainingConfig, *, examples: int, has_validation: bool) -> "StepSchedule":
        """The schedule of a job that trains on `examples` examples."""
        steps_per_epoch = math.ceil(examples / config.batch_size)
        return cls(
            total_steps=config.max_steps or config.epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            checkpoint_steps=config.checkpoint_steps,
            n_evals=config.n_evals,
            has_validation=has_validation,
        )

    def is_checkpoint(self, step: int) -> bool:
        return (
            step % self.checkpoint_steps == 0
            or step % self.steps_per_epoch == 0
            or step == self.total_steps
        )

    def is_evaluation(self, step: int) -> bool:
        return self.has_validation and (self.is_checkpoint(step) or self._is_extra_evaluation(step))

    def _is_extra_evaluation(self, step: int) -> bool:
        """Whether one of `n_evals` equal parts of the job ends with this step."""
        if self.n_evals is None:
            return False
        done, done_before = (s * self.n_evals // self.total_steps for s in (step, step - 1))
        return done > done_before


def learning_rate(step: int, config: TrainingConfig, *, total_steps: int) -> float:
    """The learning rate of one optimizer step.

    Args:
        step: number of the step, from 1 to `total_steps`.
        config: peak, schedule, and share of steps spent on warmup.
        total_steps: optimizer steps of the whole job.
    """
    warmup_steps = math.ceil(total_steps * config.warmup_ratio)
    return config.learning_rate * _factor(
        config.lr_scheduler, step - 1, warmup_steps=warmup_steps, total_steps=total_steps
    )


def _factor(kind: LrScheduler, taken: int, *, warmup_steps: int, total_steps: int) -> float:
    """Fraction of the peak after `taken` steps. As in transformers, `constant` has no warmup."""
    if kind == "constant":
        return 1.0
    if taken < warmup_steps:
        return taken / warmup_steps
    if kind == "constant_with_warmup":
        return 1.0
    progress = (taken - warmup_steps) / max(1, total_steps - warmup_steps)
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress
