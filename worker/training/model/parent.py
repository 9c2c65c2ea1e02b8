"""Puts the weights of an earlier adapter into a new one of the same shape, to continue it."""

from pathlib import Path

import torch
from peft import PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worker.training.failures import TrainingFailedError


def load_parent(model: PeftModel, file: Path) -> None:
    """Load the weights of an adapter, and nothing else: the optimizer starts afresh.

    Args:
        model: the model with a new adapter.
        file: an adapter's weights in safetensors, under the names that `peft` writes.

    Raises:
        TrainingFailedError: `parent_unusable`.
    """
    # These share their memory with the parameters of the model.
    weights: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    try:
        saved = load_file(file)
    except SafetensorError as error:
        raise _unusable(f"no tensors: {error}") from error
    if saved.keys() != weights.keys():
        raise _unusable(f"other tensors: {', '.join(sorted(saved.keys() ^ weights.keys())[:3])}")
    with torch.no_grad():
        for name, weight in weights.items():
            tensor = saved[name]
            if tensor.shape != weight.shape:
                raise _unusable(f"{name} of shape {[*tensor.shape]}, not {[*weight.shape]}")
            if not tensor.isfinite().all():
                raise _unusable(f"numbers in {name} that are not finite")
            weight.copy_(tensor)


def _unusable(what: str) -> TrainingFailedError:
    return TrainingFailedError(
        "parent_unusable",
        f"The adapter that the job continues does not fit: its file has {what}. Create a job that "
        "continues another model, or tunes a base model.",
        param="model",
    )
