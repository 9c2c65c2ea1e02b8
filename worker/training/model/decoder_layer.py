"""One decoder layer of the Llama family, as a function of tensors.

`torch.compile` fuses the operations between the matrix products; the function also runs without it.
All layers of a model share one compiled graph, because everything that differs is an argument.

Dimension key:
    B  examples in a micro-batch
    L  tokens in the longest of them
    H  width of the model
    I  inputs of a linear layer
    O  its outputs
    R  rank of the adapter
    Q  query heads
    K  key and value heads
    D  width of a head
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST_BY_PRODUCTS = 1024
"""Tokens of the longest row for which attention is computed as matrix products. They keep the whole
L x L table of each head, but are several times faster than the kernel that does not keep it,
especially in the backward pass."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Positions(NamedTuple):
    """Tensors that depend only on a token's position and are the same for every row and layer."""

    cos_LD: Tensor
    """Cosines of the rotary embedding."""
    sin_LD: Tensor
    mask_LL: Tensor
    """0 where a token sees another, minus infinity where it does not. Empty for rows longer than
    `LONGEST_BY_PRODUCTS`, for which it would take gigabytes and is not needed."""


class Linear(NamedTuple):
    """A frozen linear layer and, if it is adapted, its adapter."""

    weight_OI: Tensor
    bias_O: Tensor | None = None
    lora_A_RI: Tensor | None = None
    lora_B_OR: Tensor | None = None
    is_kept_BLI: Tensor | None = None
    """Inputs of the adapter that dropout does not zero. None without dropout."""


class LayerTensors(NamedTuple):
    attention_norm_H: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm_D: Tensor | None
    """Weights of the norm over each head's queries. None if the architecture has no such norm."""
    k_norm_D: Tensor | None
    mlp_norm_H: Tensor
    gate: Linear
    up: Linear
    down: Linear

    @property
    def masks(self) -> list[Tensor]:
        """Dropout masks of all adapters' inputs."""
        linears = (field for field in self if isinstance(field, Linear))
        return [linear.is_kept_BLI for linear in linears if linear.is_kept_BLI is not None]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Properties that all layers of a model share."""

    query_groups: int
    """Number of query heads for each key and value head."""
    head_width: int
    norm_epsilon: float
    norm_offset: float
    """Number added to the stored weights of the norms: 1 for Gemma, 0 for other architectures."""
    activation: str
    lora_scale: float
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA. With dropout, also times the factor that
    makes up for the zeroed inputs."""


LayerFunction = Callable[[Tensor, Positions, LayerTensors, LayerShape], Tensor]


def decoder_layer(
    hidden_BLH: Tensor, positions: Positions, layer: LayerTensors, shape: LayerShape
) -> Tensor:
    """Compute the input of the next layer from `hidden_BLH`, in the dtype of `hidden_BLH`."""
    normed_BLH = _norm(hidden_BLH, layer.attention_norm_H, shape)
    q_BLQD = _heads(_linear(normed_BLH, layer.q, shape), shape)
    k_BLKD = _heads(_linear(normed_BLH, layer.k, shape), shape)
    v_BLKD = _heads(_linear(normed_BLH, layer.v, shape), shape)
    if layer.q_norm_D is not None and layer.k_norm_D is not None:
        q_BLQD = _norm(q_BLQD, layer.q_norm_D, shape)
        k_BLKD = _norm(k_BLKD, layer.k_norm_D, shape)
    q_BLQD, k_BLKD = _rotate(q_BLQD, positions), _rotate(k_BLKD, positions)
    seen_BLO = _attend(q_BLQD, k_BLKD, v_BLKD, positions.mask_LL, shape)
    hidden_BLH = hidden_BLH + _linear(seen_BLO, layer.o, shape)

    normed_BLH = _norm(hidden_BLH, layer.mlp_norm_H, shape)
    gate_BLO = ACTIVATIONS[shape.activation](_linear(normed_BLH, layer.gate, shape))
    inner_BLO = gate_BLO * _linear(normed_BLH, layer.up, shape)
    return hidden_BLH + _linear(inner_BLO, layer.down, shape)


def compile_layer() -> LayerFunction:
    """Compile `decoder_layer`, at its first call with one row and at its first call with several.

    Only the numbers of rows and tokens may vary. With `dynamic=True` the width of a head could vary
    as well, and the compiled code would compute every address by divisions.
    """
    from torch._dynamo import mark_dynamic  # noqa: PLC0415 - takes seconds, and few jobs need it

    compiled = torch.compile(decoder_layer, fullgraph=True)

    def run(
        hidden_BLH: Tensor, positions: Positions, layer: LayerTensors, shape: LayerShape
    ) -> Tensor:
        varying = [(tensor, (0, 1)) for tensor in (hidden_BLH, *layer.masks, positions.mask_LL)]
        varying += [(tensor, (0,)) for tensor in (positions.cos_LD, positions.sin_LD)]
        for tensor, dimensions in varying:
            for dimension in dimensions:
                if tensor.shape[dimension] > 1:
                    mark_dynamic(tensor, dimension)
        return compiled(hidden_BLH, positions, layer, shape)

    return run


def _norm(x_H: Tensor, weight_H: Tensor, shape: LayerShape) -> Tensor:
    """Root mean square normalisation over the last dimension, in float32.

    Source:
        Zhang and Sennrich 2019, equation 4.
    """
    wide_H = x_H.float()
    wide_H = wide_H * torch.rsqrt(wide_H.square().mean(-1, keepdim=True) + shape.norm_epsilon)
    if shape.norm_offset:
        return (wide_H * (shape.norm_offset + weight_H.float())).to(x_H.dtype)
    return weight_H * wide_H.to(x_H.dtype)


def _linear(x_BLI: Tensor, layer: Linear, shape: LayerShape) -> Tensor:
    """Apply a linear layer with its adapter: W x + b + alpha / rank B A dropout(x).

    Source:
        Hu et al. 2021, equation 3.
    """
    y_BLO = F.linear(x_BLI, layer.weight_OI, layer.bias_O)
    if layer.lora_A_RI is None or layer.lora_B_OR is None:
        return y_BLO
    if layer.is_kept_BLI is not None:
        x_BLI = torch.where(layer.is_kept_BLI, x_BLI, 0)
    inner_BLR = F.linear(x_BLI, layer.lora_A_RI.to(x_BLI.dtype))
    return y_BLO + F.linear(inner_BLR, (layer.lora_B_OR * shape.lora_scale).to(x_BLI.dtype))


def _heads(x_BLO: Tensor, shape: LayerShape) -> Tensor:
    return x_BLO.unflatten(-1, (-1, shape.head_width))


def _rotate(x_BLKD: Tensor, positions: Positions) -> Tensor:
    """Rotary position embedding, on halves of a head.

    Source:
        Su et al. 2021, equation 34, with the pairs (i, i + D/2).
    """
    first, second = x_BLKD.chunk(2, dim=-1)
    turned_BLKD = torch.cat((-second, first), dim=-1)
    cos_L1D, sin_L1D = positions.cos_LD[:, None], positions.sin_LD[:, None]
    return x_BLKD * cos_L1D + turned_BLKD * sin_L1D


def _attend(
    q_BLQD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, mask_LL: Tensor, shape: LayerShape
) -> Tensor:
    """Causal attention, in which groups of query heads share a head of keys and values.

    Keys and values are copied for each query head. This costs little, and keeps their matrices
    apart in memory; otherwise the compiled code would compute every address by divisions.
    """
    B, L, Q, D = q_BLQD.shape
    scale = D**-0.5
    q_BQLD = q_BLQD.transpose(1, 2)
    k_BQLD, v_BQLD = (_copy_to_queries(x.transpose(1, 2), shape) for x in (k_BLKD, v_BLKD))
    if L > LONGEST_BY_PRODUCTS:
        seen_BQLD = F.scaled_dot_product_attention(
            q_BQLD, k_BQLD, v_BQLD, is_causal=True, scale=scale
        )
    else:
        q, k, v = (x.reshape(B * Q, L, D) for x in (q_BQLD * scale, k_BQLD, v_BQLD))
        # Softmax computes in float32, whatever dtype it reads and writes.
        weights = torch.softmax(torch.bmm(q, k.mT) + mask_LL, dim=-1)
        seen_BQLD = torch.bmm(weights, v).view(B, Q, L, D)
    return seen_BQLD.transpose(1, 2).reshape(B, L, Q * D)


def _copy_to_queries(x_BKLD: Tensor, shape: LayerShape) -> Tensor:
    B, K, L, D = x_BKLD.shape
    groups = shape.query_groups
    return x_BKLD[:, :, None].expand(B, K, groups, L, D).reshape(B, K * groups, L, D)
