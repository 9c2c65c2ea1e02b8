"""Adapters and archives written byte by byte, without any library."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RANK = 2
BASE = {
    "model.embed_tokens.weight": [10, 4],
    "model.layers.0.self_attn.q_proj.weight": [4, 4],
    "model.layers.0.self_attn.v_proj.weight": [2, 4],
    "model.layers.0.input_layernorm.weight": [4],
}
"""A base model with tied embeddings."""
LAYER = "base_model.model.model.layers.0.self_attn"
ADAPTER = {
    f"{LAYER}.q_proj.lora_A.weight": [RANK, 4],
    f"{LAYER}.q_proj.lora_B.weight": [4, RANK],
    f"{LAYER}.v_proj.lora_A.weight": [RANK, 4],
    f"{LAYER}.v_proj.lora_B.weight": [2, RANK],
}
SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/tiny",
    "bias": "none",
    "r": RANK,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["v_proj", "q_proj"],
    "qalora_group_size": 16,
    "rank_pattern": {},
}
_NUMBERS = {"F32": "<f", "F16": "<e", "BF16": "<H", "F64": "<d", "I64": "<q"}


def write_tensors(
    shapes: Mapping[str, Sequence[int]], dtype: str = "F32", *, value: float = 0.5, **changes: Any
) -> bytes:
    """A file in the format of safetensors in which every number is `value`.

    Args:
        changes: entries of the header that replace what would be there.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        number = struct.pack(_NUMBERS[dtype], int(value) if dtype in ("BF16", "I64") else value)
        begin = len(data)
        data += number * count
        header[name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [begin, len(data)]}
    text = json.dumps(header | changes).encode()
    return len(text).to_bytes(8, "little") + text + data


def zip_adapter(
    members: Mapping[str, bytes] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    weights: bytes | None = None,
    folder: str = "",
) -> bytes:
    """An archive of an adapter for `BASE`, with changed settings or other members."""
    content = {
        f"{folder}{CONFIG}": json.dumps(SETTINGS | dict(settings or {})).encode(),
        f"{folder}{WEIGHTS}": write_tensors(ADAPTER) if weights is None else weights,
        **(members or {}),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def write_base_model(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.safetensors").write_bytes(write_tensors(BASE))
    return directory
