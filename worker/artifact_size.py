"""How large a checkpoint, a saved state or the tokens of a job can be."""

import math
from pathlib import Path
from typing import get_args

from app.core.adapter_files.header import read_shapes
from app.core.job.lora_shape import Embeddings
from app.core.job.training_config import MAX_EXAMPLES_PER_LINE

_FLOAT32_BYTES = 4
_COPIES = 4
"""A saved state has the adapter, two moments of the optimizer, and the best adapter so far."""

_EMBEDDINGS = tuple(f"{name}.weight" for name in get_args(Embeddings))

_LOG_BYTES_PER_STEP = 2048
"""Most bytes of a step in the two tables of the loss log: 22 numbers each, with their names."""

ROOM_BYTES = 64 * 1024 * 1024
"""Room for everything else: tokenizer, chart, model card."""

_BYTES_PER_TOKEN = 8
"""Most bytes of a token in the files of tokens."""


def largest_artifact(
    base_model: Path, *, rank: int, total_steps: int, has_embeddings: bool = False
) -> int:
    """Most bytes of a checkpoint or a saved state, if every weight matrix had an adapter.

    Args:
        base_model: directory of the base model.
        rank: rank of the adapter.
        total_steps: number of steps in its loss log.
        has_embeddings: whether embeddings are trained whole.
    """
    shapes = {
        name: shape
        for weights in base_model.glob("*.safetensors")
        for name, shape in read_shapes(weights).items()
        if len(shape) > 1
    }
    trained = rank * sum(sum(shape[-2:]) * math.prod(shape[:-2]) for shape in shapes.values())
    if has_embeddings:
        trained += sum(
            math.prod(shape) for name, shape in shapes.items() if name.endswith(_EMBEDDINGS)
        )
    adapter_bytes = _FLOAT32_BYTES * trained
    return _COPIES * adapter_bytes + _LOG_BYTES_PER_STEP * total_steps + ROOM_BYTES


def largest_tokens(data_bytes: int) -> int:
    """Most bytes of the tokens of data files of this size together.

    A token stands for a byte at least, and a line becomes so many examples at most.
    """
    return _BYTES_PER_TOKEN * MAX_EXAMPLES_PER_LINE * data_bytes + ROOM_BYTES
