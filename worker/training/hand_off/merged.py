"""Merges an adapter into its base model: the result is an ordinary model of full size."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from app.core.job.artifacts import (
    ADAPTER_CARD_NAME,
    GENERATION_CONFIG_NAME,
    MODEL_CARD_NAME,
    TOKENIZER_NAMES,
)
from app.core.job.training_config import JobSpec
from app.core.job.training_events import Verification
from worker.training.artifacts.checkpoint import load_adapter
from worker.training.artifacts.model_card import write_merged_card
from worker.training.hand_off.logits import Probe, stored_dtype
from worker.training.model.base_model import ModelLoader

_SHARD = "2GB"
"""Most bytes of one file of weights: an archive of larger files has another form."""


def export_merged(
    target: Path,
    spec: JobSpec,
    *,
    base_model: Path,
    adapter: Path,
    progress: Callable[[float], None],
) -> Verification:
    """Write the merged model into the empty directory `target`, load it and compare its logits.

    One model is in memory at a time.

    Raises:
        TrainingFailedError: `not_enough_memory` or `export_not_equal`.
    """
    probe, dtype = Probe(base_model), stored_dtype(base_model)
    model = load_adapter(ModelLoader().load_weights(base_model, probe.dtype), adapter)
    progress(0.2)
    tuned = probe.read(model)
    with model.disable_adapter():
        untuned = probe.read(model)
    progress(0.4)
    _write(_merge(model, dtype), target, adapter=adapter, base_model=base_model)
    del model
    gc.collect()
    progress(0.7)
    merged = ModelLoader().load_weights(target, probe.dtype)
    verification = probe.compare(probe.read(merged), tuned=tuned, untuned=untuned, dtype=dtype)
    card = write_merged_card(spec, verification)
    (target / MODEL_CARD_NAME).write_text(card, encoding="utf-8")
    progress(0.9)
    return verification


def _merge(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Add the adapter to the weights in float32, and round each of them once to `dtype`."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight: Any = module.get_base_layer().weight
            weight.data = weight.data.float()
            module.merge()
            weight.data = weight.data.to(dtype)
    merged: Any = model.unload()
    merged.tie_weights()
    return merged.to(dtype)


def _write(merged: PreTrainedModel, target: Path, *, adapter: Path, base_model: Path) -> None:
    merged.save_pretrained(target, max_shard_size=_SHARD)
    copies = {name: name for name in (*TOKENIZER_NAMES, GENERATION_CONFIG_NAME)}
    for name, copy in (copies | {MODEL_CARD_NAME: ADAPTER_CARD_NAME}).items():
        # An adapter that was imported has weights and nothing else.
        found = adapter if (adapter / name).is_file() or name == MODEL_CARD_NAME else base_model
        if (found / name).is_file():
            shutil.copyfile(found / name, target / copy)
