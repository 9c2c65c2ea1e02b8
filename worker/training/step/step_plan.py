"""What is due after which optimizer step. Steps count from 1."""

import math
from dataclasses import dataclass

from app.core.job.training_config import TrainingConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a job: how many, and after which of them there is more to do."""

    total_steps: int
    steps_per_epoch: int
    checkpoint_steps: int
    n_evals: int | None
    """Evaluations besides those at each epoch's end and each checkpoint."""
    has_validation: bool

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


def plan_steps(config: TrainingConfig, *, examples: int, has_validation: bool) -> Plan:
    """Count the steps of a job over `examples` examples."""
    steps_per_epoch = math.ceil(examples / config.batch_size)
    return Plan(
        total_steps=config.max_steps or config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        checkpoint_steps=config.checkpoint_steps,
        n_evals=config.n_evals,
        has_validation=has_validation,
    )
