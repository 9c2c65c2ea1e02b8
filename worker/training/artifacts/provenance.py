"""Where a checkpoint came from: all that is needed to make it again."""

import platform
from importlib.metadata import version
from typing import Any

from app.core.job.training_config import JobSpec

LIBRARIES = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "numpy")


def describe_provenance(spec: JobSpec) -> dict[str, Any]:
    """Model, data, settings, software and computation of a job, as its manifest states them."""
    return {
        "fine_tuned_model": spec.fine_tuned_model,
        "base_model": spec.base_model.model_dump(),
        "training_file": spec.training_file.model_dump(),
        "validation_file": spec.validation_file and spec.validation_file.model_dump(),
        "config": spec.config.model_dump(mode="json"),
        "seed": spec.config.seed,
        "compute": spec.compute.model_dump(),
        "threads": spec.threads,
        "libraries": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }
