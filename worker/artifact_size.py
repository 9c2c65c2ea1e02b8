"""How large a checkpoint, a saved state or the tokens of a job can be."""

import json
import math
from pathlib import Path

from app.core.job.training_config import MAX_EXAMPLES_PER_LINE

_FLOAT32_BYTES = 4
_COPIES = 4
"""A saved state has the adapter, two moments of the optimizer, and the best adapter so far."""

_LOG_BYTES_PER_STEP = 2048
"""Most bytes of a step in the two tables of the loss log: 14 numbers each, with their names."""

ROOM_BYTES = 64 * 1024 * 1024
"""Room for everything else: tokenizer, chart, model card."""

_BYTES_PER_TOKEN = 8
"""Most bytes of a token in the files of tokens."""

_MAX_HEADER_BYTES = 100_000_000
"""Limit of the format of safetensors itself."""


def largest_artifact(base_model: Path, *, rank: int, total_steps: int) -> int:
    """Most bytes of a checkpoint or a saved state, if every weight matrix had an adapter.

    Args:
        base_model: directory of the base model.
        rank: rank of the adapter.
        total_steps: number of steps in its loss log.
    """
    rows_and_columns = sum(
        sum(shape[-2:]) * math.prod(shape[:-2])
        for weights in base_model.glob("*.safetensors")
        for shape in _read_shapes(weights)
        if len(shape) > 1
    )
    adapter_bytes = _FLOAT32_BYTES * rank * rows_and_columns
    return _COPIES * adapter_bytes + _LOG_BYTES_PER_STEP * total_steps + ROOM_BYTES


def largest_tokens(data_bytes: int) -> int:
    """Most bytes of the tokens of data files of this size together.

    A token stands for a byte at least, and a line becomes so many examples at most.
    """
    return _BYTES_PER_TOKEN * MAX_EXAMPLES_PER_LINE * data_bytes + ROOM_BYTES


def _read_shapes(weights: Path) -> list[list[int]]:
    """Read the shapes of the tensors from the header of a file in the format of safetensors."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        except ValueError:
            return []  # the training process will say what is wrong with the model
    return [about["shape"] for name, about in header.items() if name != "__metadata__"]
