"""JSON schema of job files, from the classes that check requests for jobs and for sweeps."""

from typing import Any

from app.core.ids import IdPrefix
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import DpoSettings, Method, TrainingConfig
from app.schemas.hyperparameters import (
    DEFAULT_LEARNING_RATES,
    DPO_NAMES,
    LORA_WIRE_NAMES,
    WIRE_NAMES,
)
from app.schemas.sweeps import INCOMPARABLE, SweepCreate

SCHEMA_NAME = "job.schema.json"
"""File name of the schema, which job files refer to in their first line."""

_OR_A_PATH = (
    f"Path, relative to this file, or the id of an uploaded file, such as {IdPrefix.FILE}..."
)


def make_schema() -> dict[str, Any]:
    """Make the schema, in which each hyperparameter has the default of most base models."""
    schema = SweepCreate.model_json_schema()
    schema.pop("description")
    schema["required"].remove("sweep")
    fields = schema["properties"]
    fields["sweep"] = {"$ref": "#/$defs/SweepPoints"}
    _describe_sweep(schema["$defs"])
    fields["training_file"]["description"] = f"File to train on. {_OR_A_PATH}"
    fields["validation_file"]["description"] = (
        f"File to measure the validation loss on. {_OR_A_PATH}"
    )
    defaults = {
        wire_name: list(default) if default == () else default
        for wire_names, model in (
            (WIRE_NAMES, TrainingConfig),
            (LORA_WIRE_NAMES, LoraShape),
            ({name: name for name in DPO_NAMES}, DpoSettings),
        )
        for wire_name, name in wire_names.items()
        for default in [model.model_fields[name].default]
    } | {"lora_target_modules": list(LoraShape().target_modules)}
    methods: dict[str, Method] = {"Hyperparameters": "supervised", "DpoHyperparameters": "dpo"}
    for definition, method in methods.items():
        defaults["learning_rate"] = DEFAULT_LEARNING_RATES[method]
        for name, field in schema["$defs"][definition]["properties"].items():
            if name in defaults:
                field["default"] = defaults[name]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Job file",
    }


def _describe_sweep(definitions: dict[str, Any]) -> None:
    """Name the hyperparameters that can vary, with the values that each of them can have."""
    points = definitions["SweepPoints"]
    points["description"] = (
        "What varies in a sweep, for `tunery sweeps create`. Leave it out in a file for "
        "`tunery submit`."
    )
    values = {
        name: {"$ref": f"#/$defs/Hyperparameters/properties/{name}"}
        for name in definitions["Hyperparameters"]["properties"]
        if name not in INCOMPARABLE
    }
    grid, points_listed = (points["properties"][name]["anyOf"][0] for name in ("grid", "list"))
    each = grid.pop("additionalProperties")
    grid |= {
        "additionalProperties": False,
        "properties": {name: each | {"items": value} for name, value in values.items()},
    }
    points_listed["items"] |= {"additionalProperties": False, "properties": values}
