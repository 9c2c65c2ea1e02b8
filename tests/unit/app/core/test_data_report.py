"""The report on a job's data, which a hostile child may have written."""

import json
from typing import Any

import pytest

from app.core.job.child.training_events import (
    Checked,
    DataProblem,
    JobError,
    ProtocolError,
    parse_event,
)
from app.core.job.data_report import MAX_LINES_NAMED, MAX_WARNINGS, DataReport, DataWarning
from app.core.job.loss_log import MAX_COUNT
from tests.builders import build_data_report
from worker.launch.child_output import MAX_LINE_BYTES

CHECKED = Checked(report=build_data_report(), directory="out/tokens")
WIDE = "\U0001f600"
"""A character of four bytes."""


def changed(place: str, value: Any) -> bytes:
    """The event with one value changed, as a line."""
    event: Any = json.loads(CHECKED.model_dump_json())
    *path, name = place.split(".")
    parent = event
    for part in path:
        parent = parent[part]
    parent[name] = value
    return json.dumps(event).encode()


def test_a_report_is_read_as_it_was_written() -> None:
    assert parse_event(CHECKED.model_dump_json().encode()) == CHECKED


WARNING = {"code": "duplicate", "message": "m", "param": None, "count": 1}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("directory", "out/step-1"),
        ("directory", "../tokens"),
        ("report", None),
        ("report.training_file", None),
        ("report.training_file.tokens", -1),
        ("report.training_file.tokens", MAX_COUNT + 1),
        ("report.training_file.tokens", 1.5),
        ("report.training_file.tokens_per_example.mean", float("nan")),
        ("report.training_file.tokens_per_example.p95", float("inf")),
        ("report.training_file.lengths", [{"up_to_tokens": 1, "examples": 1}] * 33),
        ("report.training_file.longest", [{"line": 1, "tokens": 1}] * 11),
        ("report.training_file.more", 1),
        ("report.warnings", [WARNING] * (MAX_WARNINGS + 1)),
        ("report.warnings", [WARNING | {"lines": [1] * (MAX_LINES_NAMED + 1)}]),
        ("report.warnings", [WARNING | {"same_as": [-1]}]),
        ("report.warnings", [WARNING | {"param": "other_file"}]),
        ("report.warnings", [WARNING | {"code": "<script>"}]),
        ("report.stop_tokens", ["a"] * 11),
    ],
)
def test_a_report_that_is_out_of_bounds_is_refused(place: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=place.rpartition(".")[2]):
        parse_event(changed(place, value))


def test_texts_are_cleaned_and_cut() -> None:
    warning = WARNING | {"message": "see /etc/passwd \x1b[2J" + "x" * 3000}

    event = parse_event(changed("report.warnings", [warning]))

    assert isinstance(event, Checked)
    message = event.report.warnings[0].message
    assert message.startswith("see [path] \ufffd[2Jxxx")
    assert len(message) == 2000


def test_the_largest_report_fits_into_a_line() -> None:
    lines = tuple(range(MAX_COUNT - MAX_LINES_NAMED, MAX_COUNT))
    warning = DataWarning(
        code="c" * 64,
        message=WIDE * 2000,
        param="validation_file",
        count=MAX_COUNT,
        lines=lines,
        same_as=lines,
    )
    file = build_data_report().training_file.model_copy(
        update={"filename": WIDE * 300, "refusal": WIDE * 2000}
    )
    report = DataReport(
        training_file=file,
        validation_file=file,
        held_out=None,
        stop_tokens=(WIDE * 300,) * 10,
        warnings=(warning,) * MAX_WARNINGS,
    )
    problem = DataProblem(line=MAX_COUNT, path=WIDE * 300, code="c" * 64, message=WIDE * 300)
    error = JobError(code="c" * 64, message=WIDE * 2000, errors=(problem,) * 50)

    line = Checked(report=report, error=error).model_dump_json().encode()

    assert len(line) < MAX_LINE_BYTES
