"""Loads a base model for sampling, with the fastest layers that support it."""

from pathlib import Path
from typing import Any

from worker.sampling.model.fused_runner import FusedRunner
from worker.sampling.model.reference_runner import ReferenceRunner
from worker.sampling.model.runner import Runner
from worker.training.compute.plan import Placement
from worker.training.model.base_model import ModelLoader, ModelShape
from worker.training.model.forward import has_fused_layers, why_not_fused

_USUAL_WINDOW = 2048
"""Window of a model whose configuration has none."""

_CHANGING_ROTATIONS = ("dynamic", "longrope")
"""Rotary embeddings that change with the length of the sequence, for which the rows of a batch
cannot share one."""


def load_runner(directory: Path, placement: Placement) -> Runner:
    """Load the base model in `directory`."""
    shape = ModelShape.read(directory)
    model: Any = ModelLoader().load_weights(directory, placement.torch_dtype)
    model = model.to(placement.device).eval()
    config = model.config.get_text_config()
    window = _read_window(config)
    if (
        why_not_fused(shape, longest_row=window) is None
        and has_fused_layers(model)
        and model.base_model.rotary_emb.rope_type not in _CHANGING_ROTATIONS
    ):
        return FusedRunner(model, window=window)
    return ReferenceRunner(model, shape, window=window)


def _read_window(config: Any) -> int:
    """Maximum number of tokens of a sequence."""
    window = getattr(config, "max_position_embeddings", None) or _USUAL_WINDOW
    rotation = getattr(config, "rope_parameters", None) or {}
    if rotation.get("rope_type") == "longrope":
        # Beyond this length, all that was read before would have to be read again.
        return min(window, rotation["original_max_position_embeddings"])
    return window
