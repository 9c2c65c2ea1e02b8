"""PiSSA and OLoRA: adapters that start as a part of the base model's weights.

They split a weight W into W - s B0 A0, which is frozen, and s B A, which starts as s B0 A0 and is
trained. Here W stays whole, and an adapter of twice the rank has A and B in its first half and the
frozen A0 and -B0 in its second. So the base model is unchanged, and the adapter fits it.

Source:
    Meng et al. 2024 (arXiv:2404.02948), Büyükakyüz 2024 (arXiv:2406.01775).

Dimension key:
    I  inputs of a linear layer
    O  its outputs
    R  rank that was asked for
"""

from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from app.core.job.lora_shape import LoraShape
from worker.training.failures import TrainingFailedError


def start_from_base(model: PeftModel, shape: LoraShape) -> None:
    """Fill both halves of a new adapter. The random numbers of PiSSA are torch's.

    Raises:
        TrainingFailedError: `lora_rank_too_large`.
    """
    for name, layer in _adapters(model):
        weight_OI: Tensor = layer.get_base_layer().weight.detach().float()
        if min(weight_OI.shape) < shape.rank:
            raise TrainingFailedError(
                "lora_rank_too_large",
                f"With an init_lora_weights of '{shape.init_lora_weights}', lora_r can be at most "
                f"{min(weight_OI.shape)}, the smaller side of the matrix {name}.",
                param="hyperparameters.lora_r",
            )
        a_RI, b_OR = split_weight(weight_OI, shape, layer.scaling[layer.active_adapters[0]])
        lora_a, lora_b = _halves(layer)
        with torch.no_grad():
            lora_a.copy_(torch.cat([a_RI, a_RI]))
            lora_b.copy_(torch.cat([b_OR, -b_OR], dim=1))


def split_weight(weight_OI: Tensor, shape: LoraShape, scale: float) -> tuple[Tensor, Tensor]:
    """A0 and B0 of a weight, for an adapter that multiplies their product by `scale`."""
    if shape.init_lora_weights == "olora":
        # The first columns of Q depend on no other columns of the weight.
        b_OR = torch.linalg.qr(weight_OI[:, : shape.rank])[0]
        return b_OR.T @ weight_OI, b_OR
    iterations = int(shape.init_lora_weights.rpartition("_")[2])
    left_OR, singular_R, right_IR = torch.svd_lowrank(weight_OI, shape.rank, niter=iterations)
    root_R = (singular_R / scale).sqrt()
    return (right_IR * root_R).T, left_OR * root_R


def freeze_start(model: PeftModel) -> None:
    """Let no gradient reach the second half of the adapter. Call this on the model's device."""
    for _, layer in _adapters(model):
        for dimension, weight in enumerate(_halves(layer)):
            weight.register_hook(partial(_zero_second_half, dimension))


def _zero_second_half(dimension: int, gradient: Tensor) -> Tensor:
    half = gradient.shape[dimension] // 2
    gradient = gradient.clone()
    gradient.narrow(dimension, half, half).zero_()
    return gradient


def _adapters(model: PeftModel) -> list[tuple[str, Any]]:
    base = model.get_base_model().named_modules()
    return [(name, module) for name, module in base if isinstance(module, LoraLayer)]


def _halves(layer: Any) -> tuple[Tensor, Tensor]:
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight
