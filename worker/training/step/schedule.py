"""Learning rate as a function of the step. Equal to `transformers.get_scheduler`, and tested so."""

import math

from app.core.job.training_config import LrScheduler, TrainingConfig


def learning_rate(step: int, config: TrainingConfig, *, total_steps: int) -> float:
    """The learning rate of one optimizer step.

    Args:
        step: of `total_steps`, from 1.
        config: its peak, its schedule and the share of steps spent on warmup.
        total_steps: optimizer steps of the whole job.
    """
    warmup_steps = math.ceil(total_steps * config.warmup_ratio)
    return config.learning_rate * _factor(
        config.lr_scheduler, step - 1, warmup_steps=warmup_steps, total_steps=total_steps
    )


def _factor(kind: LrScheduler, taken: int, *, warmup_steps: int, total_steps: int) -> float:
    """Fraction of the peak after `taken` steps. `constant` knows no warmup, as elsewhere."""
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
