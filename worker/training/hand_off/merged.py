"""Merges an adapter into its base model: the result is an ordinary model of full size."""

import gc
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from app.core.job.artifacts import (
    ADAPTER_CARD_NAME,
    GENERATION_CONFIG_NAME,
    MODEL_CARD_NAME,
    TOKENIZER_NAMES,
)
from app.core.job.child.job_spec import JobSpec
from app.core.job.child.training_events import Verification
from worker.training.artifacts.checkpoint import load_adapter
from worker.training.artifacts.model_card import write_merged_card
from worker.training.failures import TrainingFailedError
from worker.training.hand_off.logits import Probe, stored_dtype
from worker.training.model.base_model import ModelLoader

_SHARD = "2GB"
"""Most bytes of one file of weights: an archive of larger files has another form."""

_INPUTS = 4
"""Random inputs with which each merged layer is compared with the layer and its adapter."""

_MISSING = 0.01
"""Largest part of what the adapter changes that may be missing in a layer, before it is rounded."""

_ROUNDING = 2e-6
"""Largest difference of two sums of products in float32, as a fraction of the result."""


def export_merged(
    target: Path,
    spec: JobSpec,
    *,
    base_model: Path,
    adapter: Path,
    progress: Callable[[float], None],
) -> Verification:
    """Write the merged model into the empty directory `target`, load it and compare its logits.

    One model is in memory at a time. Each layer is compared before it is rounded, because rounding
    may hide that nothing was merged. The files are compared with what was merged, bit for bit.

    Raises:
        TrainingFailedError: `not_enough_memory` or `export_not_equal`.
        MemoryShortError: too little memory is free.
    """
    probe, dtype = Probe(base_model, spec), stored_dtype(base_model)
    model = load_adapter(ModelLoader().load_weights(base_model, probe.dtype), adapter)
    progress(0.2)
    tuned = probe.read(model)
    with model.disable_adapter():
        untuned = probe.read(model)
    progress(0.4)
    merged = _merge(model, dtype)
    made = _checksums(merged, dtype)
    _write(merged, target, adapter=adapter, base_model=base_model)
    del model, merged
    gc.collect()
    progress(0.7)
    merged = ModelLoader().load_weights(target, probe.dtype)
    if _checksums(merged, dtype) != made:
        raise TrainingFailedError(
            "export_not_equal", "The files do not have the weights that were merged. Try again."
        )
    verification = probe.compare(probe.read(merged), tuned=tuned, untuned=untuned, dtype=dtype)
    card = write_merged_card(spec, verification)
    (target / MODEL_CARD_NAME).write_text(card, encoding="utf-8")
    progress(0.9)
    return verification


def _merge(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Add the adapter to the weights in float32, and round each of them once to `dtype`.

    Raises:
        TrainingFailedError: `export_not_equal`.
    """
    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)
    ]
    for name, layer in layers:
        _merge_layer(name, layer.float())
        layer.to(dtype)
    merged: Any = model.unload()
    merged.tie_weights()
    return merged.to(dtype)


@torch.no_grad()
def _merge_layer(name: str, layer: Any) -> None:
    """Merge an adapted layer in float32, and check that it computes what it did before."""
    inputs = torch.randn(_INPUTS, layer.in_features, generator=torch.Generator().manual_seed(0))
    untuned, tuned = layer.get_base_layer()(inputs), layer(inputs)
    layer.merge()
    missing = (layer.get_base_layer()(inputs) - tuned).norm()
    accepted = _MISSING * (tuned - untuned).norm() + _ROUNDING * tuned.norm()
    if not missing <= accepted:  # also if it is not a number
        raise TrainingFailedError(
            "export_not_equal",
            f"The merged layer {name} does not compute what it does with the adapter. Report a bug "
            "with the name of the model.",
        )


def _checksums(model: nn.Module, dtype: torch.dtype) -> dict[str, str]:
    """The sha256 of each weight, in this dtype, by its name."""
    return {
        name: hashlib.sha256(
            weight.to(dtype).contiguous().flatten().view(torch.uint8).numpy()
        ).hexdigest()
        for name, weight in model.state_dict().items()
    }


def _write(merged: PreTrainedModel, target: Path, *, adapter: Path, base_model: Path) -> None:
    merged.save_pretrained(target, max_shard_size=_SHARD)
    copies = {name: name for name in (*TOKENIZER_NAMES, GENERATION_CONFIG_NAME)}
    for name, copy in (copies | {MODEL_CARD_NAME: ADAPTER_CARD_NAME}).items():
        # An adapter that was imported has weights and nothing else.
        found = adapter if (adapter / name).is_file() or name == MODEL_CARD_NAME else base_model
        if (found / name).is_file():
            shutil.copyfile(found / name, target / copy)
