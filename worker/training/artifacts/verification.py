"""The last question to a trained adapter: does it load as users load it, and do anything?"""

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from worker.training.failures import TrainingFailedError

_TOKENS_READ = 128
_NO_EFFECT = 1e-6
"""Largest change of a logit, as a fraction of the largest logit, that may be rounding alone."""


def check_adapter(
    model: PeftModel, adapter: Path, input_ids: Tensor, *, learning_rate: float
) -> None:
    """Load a saved adapter with `peft` onto the clean base model and compare what it says.

    Takes the adapter out of `model`, for a second copy of the base model may not fit in memory.

    Args:
        model: with the trained adapter.
        adapter: directory of the same adapter.
        input_ids: tokens of a training example.
        learning_rate: of the job, for the message.

    Raises:
        TrainingFailedError: `adapter_has_no_effect`.
        RuntimeError: what was saved is not what was trained.
    """
    input_ids_BL = input_ids[None, :_TOKENS_READ].to(model.device)
    trained_BLV = _logits(model, input_ids_BL)
    base: nn.Module = model.unload()
    untrained_BLV = _logits(base, input_ids_BL)
    loaded = PeftModel.from_pretrained(base, str(adapter))
    loaded_BLV = _logits(loaded, input_ids_BL)
    if not torch.allclose(loaded_BLV, trained_BLV, rtol=1e-4, atol=1e-4):
        raise RuntimeError(f"The adapter in {adapter.name} is not the one that was trained.")
    change = (loaded_BLV - untrained_BLV).abs().max()
    if change <= _NO_EFFECT * untrained_BLV.abs().max():
        raise TrainingFailedError(
            "adapter_has_no_effect",
            f"The trained adapter does not change what the base model says: {learning_rate=:g} is "
            "too low, or the steps are too few, for it to have learned anything. Raise "
            "learning_rate or n_epochs.",
            param="hyperparameters.learning_rate",
        )


def _logits(model: nn.Module, input_ids_BL: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=input_ids_BL, use_cache=False).logits
