"""The files of a checkpoint that a user downloads, and the check that its adapter works."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from app.core.job.artifacts import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    GENERATION_CONFIG_NAME,
    LOSS_CHART_NAME,
    MODEL_CARD_NAME,
    TOKENIZER_NAMES,
    TRAINING_CONFIG_NAME,
)
from app.core.job.child.job_spec import JobSpec
from worker.training.artifacts.loss_log import LossLog, draw_losses
from worker.training.artifacts.model_card import write_model_card
from worker.training.data.stop_tokens import StopTokens
from worker.training.failures import TrainingFailedError, diverged
from worker.training.model.embeddings import take_adapter_out, trained_embeddings

_TOKENS_READ = 128
_SETTINGS_FOR_READERS = frozenset(
    {"base_model_name_or_path", "bias", "lora_alpha", "lora_dropout", "peft_type", "r"}
    | {"target_modules", "task_type"}
)
"""Settings of an adapter that are written even if they are the defaults of `peft`, because vLLM,
SGLang and llama.cpp read them without its defaults."""
_SETTINGS_FOR_TRAINING = frozenset({"ensure_weight_tying", "init_lora_weights", "peft_version"})
"""Settings of an adapter that are never written. Embeddings that were trained as one matrix are
written under both names instead, which every `peft` loads."""
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
    stop_tokens: StopTokens,
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
        stop_tokens: where an inference server has to stop the model.
    """
    write_adapter(directory, model)
    for name in TOKENIZER_NAMES:
        if (base_model / name).is_file():
            shutil.copyfile(base_model / name, directory / name)
    generation = stop_tokens.as_generation_config()
    (directory / GENERATION_CONFIG_NAME).write_text(generation, encoding="utf-8")
    settings = spec.config.model_dump_json(indent=2)
    (directory / TRAINING_CONFIG_NAME).write_text(settings + "\n", encoding="utf-8")
    log.copy_tables(directory)
    title = f"Loss of {spec.fine_tuned_model}"
    (directory / LOSS_CHART_NAME).write_text(draw_losses(log.losses, title=title), encoding="utf-8")
    card = write_model_card(spec, step=step, rows=log.sample(20), stop_tokens=stop_tokens)
    (directory / MODEL_CARD_NAME).write_text(card, encoding="utf-8")


def write_adapter(directory: Path, model: PeftModel) -> None:
    """Write the adapter under the names and keys that `PeftModel.from_pretrained` reads."""
    # Embeddings are never resized. With "auto", peft would ask a model hub whether they were.
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    # Embeddings that are one matrix have two names, which the format does not allow.
    weights = {name: weight.clone() for name, weight in weights.items()}
    save_file(weights, directory / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
    settings = _adapter_settings(model)
    text = json.dumps(settings, indent=2, sort_keys=True)
    (directory / ADAPTER_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def _adapter_settings(model: PeftModel) -> dict[str, Any]:
    """The settings that readers need, and those that differ from the defaults of `peft`.

    An older `peft` refuses a configuration with a setting that it does not know, even if it is
    null, and every release adds some. How the weights began is left out as well: it does not matter
    any more, and `peft` would begin again before it loads them.
    """
    usual = LoraConfig().to_dict()
    settings: dict[str, Any] = model.active_peft_config.to_dict() | {"inference_mode": True}
    settings["modules_to_save"] = trained_embeddings(model) or None
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, of no fixed order
    # Likewise for models with experts, for which `peft` makes an empty one.
    settings["target_parameters"] = sorted(settings["target_parameters"] or ()) or None
    return {
        name: value
        for name, value in settings.items()
        if name in _SETTINGS_FOR_READERS
        or (name not in _SETTINGS_FOR_TRAINING and value != usual[name])
    }


def check_adapter(
    model: PeftModel, adapter: Path, input_ids: Tensor, *, step: int, learning_rate: float
) -> None:
    """Load a saved adapter as users do, with `peft`, and check that it works and does something.

    This takes the adapter out of `model`, because a second base model may not fit in memory.

    Args:
        model: the model with the trained adapter.
        adapter: directory of the saved adapter.
        input_ids: tokens of a training example.
        step: step of the adapter, for the message.
        learning_rate: learning rate of the job, for the message.

    Raises:
        TrainingFailedError: `adapter_has_no_effect`, or `loss_not_finite` if the last step was too
            large: no later step has noticed.
        RuntimeError: the saved adapter is not the one that was trained.
    """
    input_ids_BL = input_ids[None, :_TOKENS_READ].to(model.device)
    trained_BLV = read_logits(model, input_ids_BL)
    if not trained_BLV.isfinite().all():
        what = "the output of the adapter is not finite"
        raise diverged(step, what, learning_rate=learning_rate)
    base = take_adapter_out(model)
    untrained_BLV = read_logits(base, input_ids_BL)
    loaded_BLV = read_logits(load_adapter(base, adapter), input_ids_BL)
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


def load_adapter(base: nn.Module, adapter: Path) -> PeftModel:
    """Load a saved adapter as users do, with `peft`. This changes `base`."""
    with warnings.catch_warnings():
        # It warns of embeddings that were one matrix. They are saved twice, and equal.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        return PeftModel.from_pretrained(base, str(adapter))


def read_logits(model: nn.Module, input_ids_BL: Tensor) -> Tensor:
    """The logits after each token, without dropout."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=input_ids_BL, use_cache=False).logits
