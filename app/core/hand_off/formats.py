"""Formats in which an adapter is handed to other programs, and what each of them can hold."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from app.core.job.child.job_spec import TaskName
from app.core.job.lora_shape import LoraShape

ExportFormat = Literal["gguf", "merged"]

EXPORT = "export"
"""Kind of the tasks that make exports."""

ADAPTER_DIRECTORY_NAME = "adapter"
"""The checkpoint, in the directory of an export."""


class GgufArchitecture(NamedTuple):
    name: str
    """Name of the architecture in llama.cpp."""
    permutes: bool = False
    """Whether llama.cpp has the rows of the query and key projections in another order."""


GGUF_ARCHITECTURES = MappingProxyType(
    {
        "gemma": GgufArchitecture("gemma"),
        "gemma2": GgufArchitecture("gemma2"),
        "gemma3_text": GgufArchitecture("gemma3"),
        "llama": GgufArchitecture("llama", permutes=True),
        "mistral": GgufArchitecture("llama", permutes=True),
        "phi3": GgufArchitecture("phi3"),
        "qwen2": GgufArchitecture("qwen2"),
        "qwen3": GgufArchitecture("qwen3"),
        "smollm3": GgufArchitecture("smollm3", permutes=True),
    }
)
"""Architectures (`config.model_type`) whose adapters can be written for llama.cpp."""


def export_task(format: str) -> TaskName:  # noqa: A002 - the word of the API
    """What the child is told to do for an export in this `ExportFormat`."""
    return "export_gguf" if format == "gguf" else "export_merged"


def read_model_type(base_model: Path) -> str:
    """The architecture of the base model in this directory, as `config.json` names it.

    Empty if there is no such file.
    """
    return str(_read_config(base_model).get("model_type", ""))


def read_layers(base_model: Path) -> int | None:
    """The number of layers of the base model in this directory. None if it does not say."""
    config = _read_config(base_model)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    return layers if isinstance(layers, int) else None


def _read_config(base_model: Path) -> dict[str, Any]:
    try:
        return json.loads((base_model / "config.json").read_bytes())
    except FileNotFoundError:
        return {}


def why_not_gguf(shape: LoraShape, model_type: str) -> str | None:
    """Why an adapter cannot be written for llama.cpp. None if it can.

    Args:
        shape: the shape of the adapter.
        model_type: architecture of the base model.
    """
    if shape.use_dora:
        return "it was trained with use_dora, and llama.cpp does not know DoRA"
    if shape.modules_to_save:
        names = ", ".join(shape.modules_to_save)
        return f"it has whole embeddings ({names}), which llama.cpp cannot load from an adapter"
    if model_type not in GGUF_ARCHITECTURES:
        known = ", ".join(sorted(GGUF_ARCHITECTURES))
        return f"its base model is of the architecture {model_type!r}, which is not one of {known}"
    return None
