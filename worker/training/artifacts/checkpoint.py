"""The files of a checkpoint that a user downloads, and the check that its adapter works."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from app.core.job.training_config import JobSpec
from worker.training.artifacts.loss_chart import draw_losses
from worker.training.artifacts.loss_log import LossLog
from worker.training.artifacts.model_card import write_model_card
from worker.training.failures import TrainingFailedError

ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"

_TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


_TOKENS_READ = 128
_NO_EFFECT = 1e-6
"""Largest change of a logit, as a fraction of the largest logit, that may be rounding alone."""


def write_checkpoint(
    directory: Path,
    *,
    spec: JobSpec,
    step: int,
    model: PeftModel,
    base_model: Path,
    log: LossLog,
) -> None:
    """Write the adapter, its tokenizer, the loss log, the chart and the model card.

    Args:
        directory: an empty directory.
        spec: the job.
        step: optimizer steps that the adapter has taken.
        model: the model with the adapter.
        base_model: directory of the base model. Its tokenizer files are copied, because saving the
            tokenizer would name classes that only the newest transformers knows.
        log: every step so far.
    """
    write_adapter(directory, model)
    for name in _TOKENIZER_NAMES:
        if (base_model / name).is_file():
            shutil.copyfile(base_model / name, directory / name)
    settings = spec.config.model_dump_json(indent=2)
    (directory / "training_config.json").write_text(settings + "\n", encoding="utf-8")
    log.copy_tables(directory)
    title = f"Loss of {spec.fine_tuned_model}"
    (directory / "loss.svg").write_text(draw_losses(log.losses, title=title), encoding="utf-8")
    card = write_model_card(spec, step=step, rows=log.sample(20))
    (directory / "README.md").write_text(card, encoding="utf-8")


def write_adapter(directory: Path, model: PeftModel) -> None:
    """Write the adapter under the names and keys that `PeftModel.from_pretrained` reads."""
    # Embeddings are never resized; with "auto", peft would ask a model hub whether they were.
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(weights, directory / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
    settings: dict[str, Any] = model.active_peft_config.to_dict() | {"inference_mode": True}
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, of no fixed order
    text = json.dumps(settings, indent=2, sort_keys=True)
    (directory / ADAPTER_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def check_adapter(
    model: PeftModel, adapter: Path, input_ids: Tensor, *, learning_rate: float
) -> None:
    """Load a saved adapter as users do, with `peft`, and check that it works and does something.

    This takes the adapter out of `model`, because a second base model may not fit in memory.

    Args:
        model: the model with the trained adapter.
        adapter: directory of the saved adapter.
        input_ids: tokens of a training example.
        learning_rate: learning rate of the job, for the message.

    Raises:
        TrainingFailedError: `adapter_has_no_effect`.
        RuntimeError: the saved adapter is not the one that was trained.
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
            "too low, or the job has too few steps to learn anything. Raise learning_rate or "
            "n_epochs.",
            param="hyperparameters.learning_rate",
        )


def _logits(model: nn.Module, input_ids_BL: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=input_ids_BL, use_cache=False).logits
