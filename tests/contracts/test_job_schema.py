"""The published schema of job files is that of the code, and agrees with what reads them."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from app.core.errors import InvalidRequestError
from app.schemas.sweeps import SweepCreate
from app.services.sweeps.points import read_points
from tunery.client.init import example_text, schema_text
from tunery.client.job_file import read_job_file
from tunery.client.yaml_reading import read_yaml

SCHEMA = Path(__file__).parents[2] / "docs/job.schema.json"
STALE = "docs/job.schema.json is not that of the code. Run `make openapi` and commit the change."

HEAD: dict[str, Any] = {"model": "tiny", "training_file": "file-1"}


def test_the_published_schema_is_current() -> None:
    is_current = schema_text() == SCHEMA.read_text("utf-8")
    assert is_current, STALE


def test_the_example_fits_the_schema() -> None:
    document = read_yaml(example_text("job.yaml").encode())

    jsonschema.validate(document.value, json.loads(schema_text()))


@pytest.mark.parametrize(
    ("fields", "is_valid"),
    [
        ({}, True),
        ({"seed": -1}, False),
        ({"sufix": "a"}, False),
        ({"priority": 1001}, False),
        ({"hyperparameters": {"learning_rate": 1e-4, "n_epochs": "auto"}}, True),
        ({"hyperparameters": {"learning_rate": 0}}, False),
        ({"hyperparameters": {"lr_scheduler": "cosines"}}, False),
        ({"metadata": {"a": "b"}}, True),
        ({"metadata": {"a": 1}}, False),
    ],
)
def test_an_editor_and_the_command_judge_alike(
    tmp_path: Path, fields: dict[str, Any], *, is_valid: bool
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(HEAD | fields), "utf-8")  # JSON is YAML
    schema = jsonschema.Draft202012Validator(json.loads(schema_text()))

    assert schema.is_valid(HEAD | fields) is is_valid
    if is_valid:
        read_job_file(path)
    else:
        with pytest.raises(Exception, match=r"job\.yaml"):
            read_job_file(path)


@pytest.mark.parametrize(
    ("sweep", "is_valid"),
    [
        ({"grid": {"learning_rate": [1e-4, 2e-4], "lora_layers": [2, [0, 1]]}}, True),
        ({"list": [{"lora_r": 8}, {"lora_r": 16, "n_epochs": 1}]}, True),
        ({"grid": {"learning_rat": [1e-4]}}, False),
        ({"grid": {"learning_rate": [2]}}, False),
        ({"grid": {"beta": [0.1]}}, False),
        ({"list": [{"validation_split": 0.1}]}, False),
        ({"grids": {}}, False),
    ],
)
def test_an_editor_knows_what_can_vary(sweep: dict[str, Any], *, is_valid: bool) -> None:
    body = HEAD | {"hyperparameters": {"validation_split": 0.5}, "sweep": sweep}
    schema = jsonschema.Draft202012Validator(json.loads(schema_text()))

    assert schema.is_valid(body) is is_valid
    try:
        read_points(SweepCreate.model_validate(body))
    except (InvalidRequestError, ValidationError):
        assert not is_valid
    else:
        assert is_valid
