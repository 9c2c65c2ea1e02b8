import csv
import io
import json

import pytest
from pydantic import ValidationError

from app.core.job.loss_log import COLUMNS, StepMetrics, csv_lines, json_lines
from tests.builders import build_metrics

ROWS = [
    build_metrics(1),
    build_metrics(2, valid_loss=2.5, valid_mean_token_accuracy=0.25),
]


def test_the_csv_begins_with_openais_five_columns_which_scripts_read_by_position() -> None:
    header = next(csv_lines(ROWS)).partition("\n")[0]

    assert header.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert tuple(header.split(",")) == COLUMNS


def test_the_csv_has_a_line_per_step_and_empty_cells_where_nothing_was_measured() -> None:
    first, second = csv.DictReader(io.StringIO("".join(csv_lines(ROWS))))

    assert (first["step"], first["train_loss"], first["valid_loss"]) == ("1", "3.0", "")
    assert first["train_accuracy"] == first["train_mean_token_accuracy"] == "0.5"
    assert second["valid_loss"] == second["full_valid_loss"] == "2.5"
    accuracies = second["valid_mean_token_accuracy"], second["full_valid_mean_token_accuracy"]
    assert accuracies == ("0.25", "0.25")


def test_the_log_of_a_job_that_took_no_step_is_a_header() -> None:
    assert "".join(csv_lines([])) == ",".join(COLUMNS) + "\n"
    assert list(json_lines([])) == []


def test_json_lines_say_the_same_with_null_for_what_was_not_measured() -> None:
    lines = [json.loads(line) for line in json_lines(ROWS)]

    assert lines == [row.as_row() for row in ROWS]
    assert lines[0]["valid_loss"] is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_write_is_not_a_measurement(loss: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        build_metrics(train_loss=loss)
    with pytest.raises(ValidationError, match="finite"):
        StepMetrics.model_validate_json(build_metrics().model_dump_json().replace("1.5", "NaN"))
