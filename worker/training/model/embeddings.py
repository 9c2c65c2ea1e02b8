"""Embeddings that are trained whole, beside the adapter: the `modules_to_save` of `peft`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from worker.training.failures import TrainingFailedError


def check_embeddings(base: PreTrainedModel, names: Sequence[str]) -> None:
    """Check that the embeddings of the base model have these names.

    Raises:
        TrainingFailedError: `unknown_target_module`.
    """
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    known = [
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if any(module is one for one in embeddings)
    ]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TrainingFailedError(
            "unknown_target_module",
            f"The base model has no embeddings named {', '.join(unknown)}. It has "
            f"{', '.join(known)}.",
            param="hyperparameters.modules_to_save",
        )


def are_tied(base: PreTrainedModel) -> bool:
    """Whether one matrix is both the input and the output embeddings."""
    head: Any = base.get_output_embeddings()
    return head is not None and base.get_input_embeddings().weight is head.weight


def train_in_float32(model: PeftModel) -> None:
    """Keep trained embeddings in float32, as the adapter, and compute with them in their old dtype.

    So they give what they will give to whoever loads them. In bfloat16, most updates would be too
    small to change a weight.
    """
    for wrapper in _wrappers(model).values():
        dtype: torch.dtype = wrapper.original_module.weight.dtype
        (trained,) = wrapper.modules_to_save.values()
        trained.float()
        if dtype != torch.float32:
            wrapper.forward = partial(_run_in, dtype, trained)


def _run_in(dtype: torch.dtype, module: Any, inputs: Tensor) -> Tensor:
    return functional_call(module, {"weight": module.weight.to(dtype)}, (inputs,))


def trained_embeddings(model: PeftModel) -> list[str]:
    """Names of the embeddings that are trained: both if they are one matrix."""
    return sorted(name.rpartition(".")[2] for name in _wrappers(model))


def take_adapter_out(model: PeftModel) -> nn.Module:
    """The base model as it was. `PeftModel.unload` alone would leave trained embeddings in it."""
    originals = {name: wrapper.original_module for name, wrapper in _wrappers(model).items()}
    base: nn.Module = model.unload()
    for name, original in originals.items():
        base.set_submodule(name, original)
    return base


def _wrappers(model: PeftModel) -> dict[str, ModulesToSaveWrapper]:
    """What is in the place of each trained embedding, by its name in the base model."""
    return {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
