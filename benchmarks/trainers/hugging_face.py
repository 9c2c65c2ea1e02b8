"""What is counted of a `transformers.Trainer` from outside: ends of steps, and tokens."""

import time
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from benchmarks.trainers.task import Tick


class StepClock(TrainerCallback):
    """Notes when each optimizer step ends.

    Attributes:
        tokens: real tokens read so far; `count_tokens` counts them.
    """

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.tokens = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ticks.append(Tick(time.perf_counter(), self.tokens))


def count_tokens(trainer: type[Trainer], clock: StepClock) -> Any:
    """The same trainer, whose micro-batches are counted; what it computes is untouched."""

    class CountingTrainer(trainer):
        def training_step(
            self, model: nn.Module, inputs: dict[str, Any], *more: Any, **named: Any
        ) -> Any:
            mask = inputs.get("attention_mask")
            # Without a mask, rows are packed one after the other and nothing is padding.
            tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
            clock.tokens += tokens
            return super().training_step(model, inputs, *more, **named)

    return CountingTrainer
