"""Writes an adapter as a GGUF file, which llama.cpp loads beside its base model.

Source:
    ggml-org/llama.cpp, `convert_lora_to_gguf.py`: the names, the metadata and the order of rows.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from app.core.adapter_files.peft_config import PREFIX
from app.core.hand_off.formats import GGUF_ARCHITECTURES, GgufArchitecture, read_model_type
from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, GGUF_ADAPTER_NAME
from app.core.job.child.job_spec import JobSpec
from app.core.job.child.training_events import Verification
from worker.training.artifacts.checkpoint import load_adapter
from worker.training.failures import TrainingFailedError
from worker.training.hand_off.logits import Probe
from worker.training.model.base_model import ModelLoader

Array = npt.NDArray[np.float32]


class _Place(NamedTuple):
    """Where a weight of the adapter is in the GGUF file."""

    name: str
    heads: int | None
    """Number of heads whose rows are in another order there. None for the same order."""


def export_gguf(
    target: Path,
    spec: JobSpec,
    *,
    base_model: Path,
    adapter: Path,
    progress: Callable[[float], None],
) -> Verification:
    """Write `adapter.gguf` into the empty directory `target`, read it back and compare logits.

    Raises:
        TrainingFailedError: `not_enough_memory`, `format_not_possible` or `export_not_equal`.
        MemoryShortError: too little memory is free.
    """
    architecture = GGUF_ARCHITECTURES[read_model_type(base_model)]
    weights = load_file(adapter / ADAPTER_WEIGHTS_NAME)
    places = _find_places(weights, base_model, architecture)
    settings = json.loads((adapter / ADAPTER_CONFIG_NAME).read_bytes())
    path = target / GGUF_ADAPTER_NAME
    _write(path, weights, places, spec, architecture.name, alpha=_alpha(settings))
    progress(0.1)
    probe = Probe(base_model, spec)
    model = load_adapter(ModelLoader().load_weights(base_model, probe.dtype), adapter)
    progress(0.4)
    tuned = probe.read(model)
    with model.disable_adapter():
        untuned = probe.read(model)
    progress(0.7)
    _load_back(path, model, weights, places)
    return probe.compare(probe.read(model), tuned=tuned, untuned=untuned, dtype=torch.float32)


def _alpha(settings: dict[str, Any]) -> float:
    """Alpha with which alpha / rank, as llama.cpp scales an adapter, is the scale of `peft`."""
    is_by_root = settings.get("use_rslora", False)
    return settings["lora_alpha"] * (settings["r"] ** 0.5 if is_by_root else 1.0)


def _find_places(
    weights: dict[str, Tensor], base_model: Path, architecture: GgufArchitecture
) -> dict[str, _Place]:
    """The place of each weight, by its name in the adapter."""
    config: Any = AutoConfig.from_pretrained(base_model, local_files_only=True).get_text_config()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    places: dict[str, _Place] = {}
    for weight in weights:
        layer, _, matrix = weight.removeprefix(PREFIX).rpartition(".lora_")
        name = names.get_name(layer)
        if name is None or matrix not in ("A.weight", "B.weight"):
            raise TrainingFailedError(
                "format_not_possible",
                f"The weight {weight} of the adapter has no place in a GGUF file. Take "
                "format=merged, which has the adapter in the weights of the base model.",
            )
        is_permuted = architecture.permutes and matrix == "B.weight"
        places[weight] = _Place(
            f"{name}.weight.lora_{matrix[0].lower()}",
            heads.get(name.rpartition(".")[2]) if is_permuted else None,
        )
    return places


def _write(
    path: Path,
    weights: dict[str, Tensor],
    places: dict[str, _Place],
    spec: JobSpec,
    architecture: str,
    *,
    alpha: float,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(spec.fine_tuned_model)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for weight, place in places.items():
        array: Array = weights[weight].float().numpy()
        writer.add_tensor(place.name, array if place.heads is None else _pair(array, place.heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _pair(rows: Array, heads: int) -> Array:
    """Put the rows of each head into the order of llama.cpp.

    It rotates neighbouring dimensions, (0, 1), (2, 3), ...; transformers rotates those half a head
    apart, (0, d/2), (1, d/2 + 1), ...
    """
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _unpair(rows: Array, heads: int) -> Array:
    """Undo `_pair`."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _load_back(
    path: Path, model: PeftModel, weights: dict[str, Tensor], places: dict[str, _Place]
) -> None:
    """Read the file, compare every weight, and put what llama.cpp would compute into the model.

    Raises:
        TrainingFailedError: `export_not_equal`.
    """
    reader = gguf.GGUFReader(path)
    alpha = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    settings = model.peft_config["default"].to_dict()
    scale_of_peft = _alpha(settings) / settings["r"]
    read: dict[str, Tensor] = {}
    for weight, place in places.items():
        array = tensors.pop(place.name)
        array = array if place.heads is None else _unpair(array, place.heads)
        read[weight] = torch.from_numpy(array)
        if not torch.equal(read[weight], weights[weight].float()):
            raise TrainingFailedError(
                "export_not_equal", f"{place.name} is not what was written. Try again."
            )
        if ".lora_B." in weight:
            read[weight] = read[weight] * (alpha / array.shape[1] / scale_of_peft)
    set_peft_model_state_dict(model, read)
