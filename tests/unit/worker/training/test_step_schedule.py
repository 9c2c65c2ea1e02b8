from typing import Any

import pytest

from app.core.job.training_config import TrainingConfig
from worker.training.step.trainer import StepSchedule


def schedule(*, examples: int = 10, has_validation: bool = True, **settings: Any) -> StepSchedule:
    config = TrainingConfig(seed=0, **settings)
    return StepSchedule(config, examples=examples, has_validation=has_validation)


def steps_where(predicate: Any, total: int) -> list[int]:
    return [step for step in range(1, total + 1) if predicate(step)]


def test_the_last_batch_of_an_epoch_is_a_step_too() -> None:
    assert schedule(examples=10, epochs=3).total_steps == 9


@pytest.mark.parametrize("max_steps", [2, 100])
def test_max_steps_counts_whatever_the_epochs_say(max_steps: int) -> None:
    assert schedule(examples=10, epochs=3, max_steps=max_steps).total_steps == max_steps


def test_a_checkpoint_is_due_every_so_often_at_an_epochs_end_and_at_the_end() -> None:
    steps = schedule(examples=12, epochs=4, checkpoint_steps=5, max_steps=11)

    assert steps_where(steps.is_checkpoint, 11) == [3, 5, 6, 9, 10, 11]


def test_there_is_an_evaluation_at_each_checkpoint_and_at_even_distances() -> None:
    steps = schedule(examples=400, epochs=1, checkpoint_steps=70, n_evals=4)

    assert steps_where(steps.is_evaluation, 100) == [25, 50, 70, 75, 100]


def test_more_evaluations_than_steps_are_one_a_step() -> None:
    steps = schedule(examples=12, epochs=1, n_evals=50)

    assert steps_where(steps.is_evaluation, 3) == [1, 2, 3]


def test_evaluations_come_every_eval_steps_beside_the_others() -> None:
    steps = schedule(examples=40, epochs=1, eval_steps=4, n_evals=2)

    assert steps_where(steps.is_evaluation, 10) == [4, 5, 8, 10]


def test_without_a_validation_file_there_is_no_evaluation() -> None:
    steps = schedule(examples=12, epochs=1, n_evals=50, has_validation=False)

    assert steps_where(steps.is_evaluation, 3) == []
