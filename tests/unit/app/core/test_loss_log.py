import csv
import io
import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.core.job.loss_log import (
    COLUMNS,
    REWARD_COLUMNS,
    StepMetrics,
    csv_texts,
    in_batches,
    json_texts,
)
from tests.builders import build_base_metrics, build_metrics, build_pair_metrics

ROWS = [
    build_metrics(1),
    build_metrics(2, valid_loss=2.5, valid_mean_token_accuracy=0.25),
]


def test_the_csv_begins_with_openais_five_columns_which_scripts_read_by_position() -> None:
    header = next(csv_texts([ROWS])).partition("\n")[0]

    assert header.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert tuple(header.split(",")) == COLUMNS


def test_the_csv_has_a_line_per_step_and_empty_cells_where_nothing_was_measured() -> None:
    first, second = csv.DictReader(io.StringIO("".join(csv_texts([ROWS]))))

    assert (first["step"], first["train_loss"], first["valid_loss"]) == ("1", "3.0", "")
    assert first["train_accuracy"] == first["train_mean_token_accuracy"] == "0.5"
    assert second["valid_loss"] == second["full_valid_loss"] == "2.5"
    accuracies = second["valid_mean_token_accuracy"], second["full_valid_mean_token_accuracy"]
    assert accuracies == ("0.25", "0.25")


def test_the_log_of_a_job_that_took_no_step_is_a_header() -> None:
    assert "".join(csv_texts([])) == ",".join(COLUMNS) + "\n"
    assert list(json_texts([])) == []


def test_json_lines_say_the_same_with_null_for_what_was_not_measured() -> None:
    lines = [json.loads(line) for line in "".join(json_texts([ROWS])).splitlines()]

    assert lines == [row.as_row() for row in ROWS]
    assert lines[0]["valid_loss"] is None


def test_the_log_of_preferences_has_rewards_after_all_other_columns() -> None:
    rows = [build_pair_metrics(1, valid_loss=None, valid_rewards=None), build_pair_metrics(2)]

    text = "".join(csv_texts([rows]))
    first, second = csv.DictReader(io.StringIO(text))
    lines = [json.loads(line) for line in "".join(json_texts([rows])).splitlines()]

    assert tuple(text.partition("\n")[0].split(",")) == COLUMNS + REWARD_COLUMNS
    assert [first[name] for name in REWARD_COLUMNS] == ["0.5", "-0.25", "0.75", "0.75"] + [""] * 4
    assert [second[name] for name in REWARD_COLUMNS[4:]] == ["0.25", "0.125", "0.125", "0.5"]
    assert second["valid_perplexity"] == ""  # the loss is not that of a token
    assert lines == [row.as_row() for row in rows]
    assert lines[0]["valid_reward_margin"] is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_write_is_not_a_measurement(loss: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        build_metrics(train_loss=loss)
    with pytest.raises(ValidationError, match="finite"):
        StepMetrics.model_validate_json(build_metrics().model_dump_json().replace("1.5", "NaN"))


@pytest.mark.parametrize(
    "change",
    [
        {"step": 0},
        {"train_loss": None},
        {"grad_norm": None},
        {"step": 2**70},
        {"epoch": -0.1},
        {"train_loss": 1e300},
        {"train_mean_token_accuracy": 1.5},
        {"valid_loss": -1e300},
        {"learning_rate": 2.0},
        {"grad_norm": -1.0},
        {"tokens_seen": 10**16},
        {"elapsed_s": -1.0},
    ],
    ids=str,
)
def test_a_number_that_no_training_can_have_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StepMetrics(**(build_metrics().model_dump() | change))


@pytest.mark.parametrize(
    "change", [{"valid_loss": None}, {"train_loss": 1.0}, {"learning_rate": 1e-4}], ids=str
)
def test_the_row_of_the_base_model_is_an_evaluation_and_nothing_else(
    change: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError, match="step 0 has an evaluation and nothing else"):
        build_base_metrics(**change)


@pytest.mark.parametrize(("loss", "perplexity"), [(0.0, 1.0), (2.5, 12.18249), (900.0, 1e9)])
def test_the_perplexity_is_the_exponential_of_the_validation_loss_up_to_a_cap(
    loss: float, perplexity: float
) -> None:
    row = build_metrics(valid_loss=loss).as_row()

    assert row["valid_perplexity"] == pytest.approx(perplexity)
    assert build_metrics().as_row()["valid_perplexity"] is None


def test_the_csv_of_an_evaluated_base_model_begins_with_step_0_and_its_losses() -> None:
    (row,) = csv.DictReader(io.StringIO("".join(csv_texts([[build_base_metrics()]]))))

    assert (row["step"], row["train_loss"], row["valid_loss"]) == ("0", "", "4.0")
    assert (row["learning_rate"], row["grad_norm"]) == ("", "")


def test_a_long_log_is_read_in_batches() -> None:
    rows = [build_metrics(step) for step in range(1, 8)]
    read_from: list[int] = []

    def read(first: int) -> list[StepMetrics]:
        read_from.append(first)
        return rows[first - 1 : first + 2]

    batches = list(in_batches(rows[:3], read))

    assert batches == [rows[:3], rows[3:6], rows[6:]]
    assert read_from == [4, 7, 8]
