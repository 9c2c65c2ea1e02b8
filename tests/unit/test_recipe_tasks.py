"""The tasks of `make recipes`."""

import json

import pytest

from benchmarks.recipe_tasks import RecipeTask, build_tasks

TASKS = {task.name: task for task in build_tasks()}


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_what_is_held_out_is_not_trained_on(task: RecipeTask) -> None:
    trained, held_out = (
        [row["messages"][-2]["content"] for row in rows] for rows in (task.training, task.held_out)
    )

    assert len(trained) in (64, 100)
    assert len(held_out) in (10, 20)
    assert set(trained).isdisjoint(held_out)
    assert len(task.shortened(16).training) == 16


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_answers_of_the_data_are_right(task: RecipeTask) -> None:
    answers = [row["messages"][-1]["content"] for row in task.held_out]

    assert all(map(task.is_right, answers, answers))
    assert not any(task.is_right("I do not know.", answer) for answer in answers)


def test_json_is_compared_by_its_values() -> None:
    order = {"name": "Ada", "quantity": 2}
    is_right = TASKS["JSON extraction"].is_right

    assert is_right(json.dumps(order, indent=2), json.dumps(order))
    assert not is_right('{"name": "Ada", "quantity": "2"}', json.dumps(order))


def test_the_tasks_are_the_same_at_every_call() -> None:
    assert [task.training for task in build_tasks()] == [task.training for task in TASKS.values()]
