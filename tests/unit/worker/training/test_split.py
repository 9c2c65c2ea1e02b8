"""The rows that `validation_split` holds out."""

import numpy as np
import pytest

from tests.tiny import RowsInMemory
from worker.training.data.dataset import TokenizedRow
from worker.training.data.split import SelectedRows, split_rows
from worker.training.failures import TrainingFailedError


def rows(count: int) -> RowsInMemory:
    """Row i has i + 2 tokens, all of them i."""
    tokens = [np.full(row + 2, row) for row in range(count)]
    return RowsInMemory([TokenizedRow(row, row) for row in tokens])


def numbers(data: SelectedRows) -> list[int]:
    return [int(data.read(index).input_ids[0]) for index in range(len(data))]


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(10, 0.2, 2), (10, 0.01, 1), (2, 0.5, 1), (9, 0.5, 4)]
)
def test_every_row_is_either_trained_on_or_held_out(
    count: int, fraction: float, held_out: int
) -> None:
    training, validation = split_rows(rows(count), fraction=fraction, seed=1)

    assert len(validation) == held_out
    assert sorted(numbers(training) + numbers(validation)) == list(range(count))
    assert numbers(training) == sorted(numbers(training))
    assert training.lengths.tolist() == [row + 2 for row in numbers(training)]


def test_the_split_depends_on_the_seed_alone() -> None:
    splits = [numbers(split_rows(rows(100), fraction=0.1, seed=seed)[1]) for seed in (1, 1, 2)]

    assert splits[0] == splits[1] != splits[2]


def test_the_rows_of_a_line_stay_together() -> None:
    data = rows(40)
    data.lines = np.repeat(np.arange(1, 21), [1, 3] * 10)

    training, validation = split_rows(data, fraction=0.25, seed=1)

    assert len(np.unique(validation.lines)) == 5
    assert set(training.lines.tolist()).isdisjoint(validation.lines.tolist())
    assert len(training) + len(validation) == 40


def test_the_split_of_rows_of_different_lines_is_that_of_earlier_releases() -> None:
    _, validation = split_rows(rows(20), fraction=0.25, seed=1)

    assert numbers(validation) == [0, 4, 10, 15, 19]


def test_a_single_row_cannot_be_split() -> None:
    with pytest.raises(TrainingFailedError, match="leaves none of the 1 examples") as caught:
        split_rows(rows(1), fraction=0.5, seed=1)

    assert caught.value.code == "too_few_examples"
    assert caught.value.param == "hyperparameters.validation_split"
