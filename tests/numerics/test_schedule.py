from typing import Any

import pytest
import torch
from transformers import get_scheduler

from app.core.job.training_config import LrScheduler, TrainingConfig
from worker.training.step.trainer import StepSchedule

PEAK = 2e-4


def rates(kind: LrScheduler, *, total_steps: int, **settings: Any) -> list[float]:
    config = TrainingConfig(
        seed=0,
        learning_rate=PEAK,
        lr_scheduler=kind,
        **settings,
        max_steps=total_steps,
    )
    schedule = StepSchedule(config, examples=1, has_validation=False)
    return [schedule.learning_rate(step) for step in range(1, total_steps + 1)]


def rates_of_transformers(
    kind: str, *, total_steps: int, warmup_steps: int, **more: Any
) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = get_scheduler(
        kind,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=more,
    )
    found: list[float] = []
    for _ in range(total_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize(
    ("total_steps", "warmup_ratio", "warmup_steps"),
    [(1, 0.0, 0), (9, 0.0, 0), (20, 0.1, 2), (25, 0.1, 3), (7, 1.0, 7)],
)
def test_every_schedule_is_the_one_of_transformers(
    kind: LrScheduler, total_steps: int, warmup_ratio: float, warmup_steps: int
) -> None:
    ours = rates(kind, total_steps=total_steps, warmup_ratio=warmup_ratio)

    theirs = rates_of_transformers(kind, total_steps=total_steps, warmup_steps=warmup_steps)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 30])
def test_a_number_of_warmup_steps_is_that_of_transformers(
    kind: LrScheduler, warmup_steps: int
) -> None:
    ours = rates(kind, total_steps=20, warmup_steps=warmup_steps)

    theirs = rates_of_transformers(kind, total_steps=20, warmup_steps=warmup_steps)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_cosine_with_a_lowest_rate_is_that_of_transformers() -> None:
    ours = rates("cosine", total_steps=20, warmup_steps=4, min_lr_ratio=0.1)

    theirs = rates_of_transformers(
        "cosine_with_min_lr", total_steps=20, warmup_steps=4, min_lr_rate=0.1
    )
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_line_with_a_lowest_rate_falls_to_it() -> None:
    found = rates("linear", total_steps=4, min_lr_ratio=0.5)

    assert found == pytest.approx([PEAK, 0.875 * PEAK, 0.75 * PEAK, 0.625 * PEAK])


def test_without_warmup_the_first_step_has_the_peak_and_the_last_still_learns() -> None:
    found = rates("linear", total_steps=4, warmup_ratio=0.0)

    assert found == pytest.approx([PEAK, 0.75 * PEAK, 0.5 * PEAK, 0.25 * PEAK])
