"""The weights of decoder layers, with those that share an input in one matrix.

Dimension key:
    H  width of the model
    I  inputs of a linear layer
    O  its outputs
    N  query heads, and then key heads
    D  width of a head
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worker.sampling.model.adapter_files import AdapterWeights, LowRank
from worker.sampling.model.low_rank import FusedLowRank, fuse
from worker.training.model.decoder_layer import LayerShape, LayerTensors, Linear
from worker.training.model.layer_weights import layer_tensors

_MODULES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Linear layers of `transformers` that become one, in the order of `FusedLayer.linears`."""


class FusedLinear(NamedTuple):
    weight_OI: Tensor
    bias_O: Tensor | None
    sizes: tuple[int, ...]
    """Outputs of each of the layers that were fused."""


class FusedLayer(NamedTuple):
    attention_norm_H: Tensor
    qkv: FusedLinear
    head_norms_ND: Tensor | None
    """Weights of the norm over each query and each key. None if there is no such norm."""
    o: FusedLinear
    mlp_norm_H: Tensor
    gate_up: FusedLinear
    down: FusedLinear

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def bytes(self) -> int:
        tensors = [self.attention_norm_H, self.head_norms_ND, self.mlp_norm_H]
        for linear in self.linears:
            tensors += (linear.weight_OI, linear.bias_O)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class AdaptedLayer(NamedTuple):
    """Adapters of the four linear layers of a `FusedLayer`. None for those without one."""

    qkv: FusedLowRank | None
    o: FusedLowRank | None
    gate_up: FusedLowRank | None
    down: FusedLowRank | None

    @property
    def bytes(self) -> int:
        return sum(low_rank.bytes for low_rank in self if low_rank is not None)


def take_layers(decoder: Any, shape: LayerShape) -> list[FusedLayer]:
    """Move the layers of a decoder of `transformers` into fused ones, so that it has none left.

    One after the other, so that no more than one layer is in memory twice.
    """
    layers: list[FusedLayer] = []
    for index, module in enumerate(decoder.layers):
        layers.append(_fuse_layer(layer_tensors(module), shape))
        decoder.layers[index] = nn.Identity()
    return layers


def norm_weight(weight_H: Tensor, shape: LayerShape) -> Tensor:
    """What a norm multiplies by, from its stored weights."""
    if not shape.norm_offset:
        return weight_H.detach()
    return (weight_H.detach().float() + shape.norm_offset).to(weight_H.dtype)


def _fuse_layer(layer: LayerTensors, shape: LayerShape) -> FusedLayer:
    head_norms_ND = None
    if layer.q_norm_D is not None and layer.k_norm_D is not None:
        pairs = ((layer.q, layer.q_norm_D), (layer.k, layer.k_norm_D))
        head_norms_ND = torch.cat(
            [
                norm_weight(norm_D, shape).expand(len(linear.weight_OI) // shape.head_width, -1)
                for linear, norm_D in pairs
            ]
        )
    return FusedLayer(
        attention_norm_H=norm_weight(layer.attention_norm_H, shape),
        qkv=_fuse_linears(layer.q, layer.k, layer.v),
        head_norms_ND=head_norms_ND,
        o=_fuse_linears(layer.o),
        mlp_norm_H=norm_weight(layer.mlp_norm_H, shape),
        gate_up=_fuse_linears(layer.gate, layer.up),
        down=_fuse_linears(layer.down),
    )


def _fuse_linears(*linears: Linear) -> FusedLinear:
    weight_OI = torch.cat([linear.weight_OI.detach() for linear in linears])
    sizes = tuple(len(linear.weight_OI) for linear in linears)
    biases = [linear.bias_O for linear in linears]
    if all(bias_O is None for bias_O in biases):
        return FusedLinear(weight_OI, None, sizes)
    zeros = (weight_OI.new_zeros(size) for size in sizes)
    pairs = zip(biases, zeros, strict=True)
    bias_O = torch.cat([zero_O if bias_O is None else bias_O.detach() for bias_O, zero_O in pairs])
    return FusedLinear(weight_OI, bias_O, sizes)


def adapt_layers(
    layers: Sequence[FusedLayer], weights: AdapterWeights, *, prefix: str
) -> list[AdaptedLayer]:
    """Bring an adapter into the form of fused layers.

    Args:
        layers: those of the base model.
        weights: the adapter.
        prefix: beginning of the names of layers, such as `model.layers`.
    """
    adapted: list[AdaptedLayer] = []
    for index, layer in enumerate(layers):
        fused = [
            _adapt(linear, [f"{prefix}.{index}.{name}" for name in names], weights.linears)
            for linear, names in zip(layer.linears, _MODULES, strict=True)
        ]
        adapted.append(AdaptedLayer(*fused))
    return adapted


def _adapt(
    base: FusedLinear, names: Sequence[str], low_ranks: Mapping[str, LowRank]
) -> FusedLowRank | None:
    pieces: list[tuple[slice, LowRank]] = []
    start = 0
    for name, size in zip(names, base.sizes, strict=True):
        if name in low_ranks:
            pieces.append((slice(start, start + size), low_ranks[name]))
        start += size
    return fuse(base.weight_OI, base.bias_O, pieces) if pieces else None
