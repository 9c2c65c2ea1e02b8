"""JSON schema of job files, from the class that checks requests for jobs."""

from typing import Any

from app.core.ids import IdPrefix
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import TrainingConfig
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import LORA_WIRE_NAMES, WIRE_NAMES

SCHEMA_NAME = "job.schema.json"
"""File name of the schema, which job files refer to in their first line."""

_OR_A_PATH = (
    f"Path, relative to this file, or the id of an uploaded file, such as {IdPrefix.FILE}..."
)


def make_schema() -> dict[str, Any]:
    """Make the schema, in which each hyperparameter has the default of most base models."""
    schema = JobCreate.model_json_schema()
    fields = schema["properties"]
    fields["training_file"]["description"] = f"File to train on. {_OR_A_PATH}"
    fields["validation_file"]["description"] = (
        f"File to measure the validation loss on. {_OR_A_PATH}"
    )
    hyperparameters = schema["$defs"]["Hyperparameters"]["properties"]
    for wire_names, model in ((WIRE_NAMES, TrainingConfig), (LORA_WIRE_NAMES, LoraShape)):
        for wire_name, name in wire_names.items():
            default = model.model_fields[name].default
            hyperparameters[wire_name]["default"] = list(default) if default == () else default
    hyperparameters["lora_target_modules"]["default"] = list(LoraShape().target_modules)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Job file",
    }
