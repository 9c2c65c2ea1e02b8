"""One decoder layer of the Llama family, as a function of tensors.

Written for `torch.compile`, which fuses what lies between the matrix products, and usable without
it. All layers of a model share one compiled graph: what differs between them is arguments.

Dimension key:
    B  examples in a micro-batch
    L  tokens in the longest of them
    H  width of the model
    I  inputs of a linear layer
    O  its outputs
    R  rank of the adapter
    K  key and value heads
    G  query heads to each of them
    D  width of a head
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.training.dropout import DropoutRate

LONGEST_BY_PRODUCTS = 1024
"""Tokens of a row up to which attention is written as matrix products. These keep the whole L x L
table of each head, but are several times faster than the kernel that does not: most of all its
backward pass."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Positions(NamedTuple):
    """What the place of a token in its row makes of it; the same for every row and layer."""

    cos_LD: Tensor
    """Of the rotary embedding."""
    sin_LD: Tensor
    mask_LL: Tensor
    """float32: 0 where a token sees another, minus infinity where it does not."""


class Linear(NamedTuple):
    """A frozen linear layer and, if it is adapted, its adapter."""

    weight_OI: Tensor
    bias_O: Tensor | None = None
    lora_A_RI: Tensor | None = None
    lora_B_OR: Tensor | None = None
    bits_BLI: Tensor | None = None
    """Decides which inputs of the adapter are zeroed; None without dropout."""


class LayerTensors(NamedTuple):
    attention_norm_H: Tensor
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm_D: Tensor | None
    """Of the architectures that normalise queries and keys, head by head."""
    k_norm_D: Tensor | None
    mlp_norm_H: Tensor
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What all layers of a model have in common."""

    kv_heads: int
    query_groups: int
    head_width: int
    norm_epsilon: float
    norm_offset: float
    """1 where the norms' weights are written as differences from one."""
    activation: str
    lora_scale: float
    """alpha / rank."""
    dropout: DropoutRate | None
    """None where nothing is zeroed."""


def decoder_layer(
    hidden_BLH: Tensor, positions: Positions, layer: LayerTensors, shape: LayerShape
) -> Tensor:
    """Read `hidden_BLH`, in the dtype that is computed in, and return what the next layer reads."""
    normed_BLH = _norm(hidden_BLH, layer.attention_norm_H, shape)
    q_BLKGD = _heads(_linear(normed_BLH, layer.q, shape), shape.query_groups, shape)
    k_BLKGD = _heads(_linear(normed_BLH, layer.k, shape), 1, shape)
    v_BLKGD = _heads(_linear(normed_BLH, layer.v, shape), 1, shape)
    if layer.q_norm_D is not None and layer.k_norm_D is not None:
        q_BLKGD = _norm(q_BLKGD, layer.q_norm_D, shape)
        k_BLKGD = _norm(k_BLKGD, layer.k_norm_D, shape)
    q_BLKGD, k_BLKGD = _rotate(q_BLKGD, positions), _rotate(k_BLKGD, positions)
    seen_BLO = _attend((q_BLKGD, k_BLKGD, v_BLKGD), positions.mask_LL, shape)
    hidden_BLH = hidden_BLH + _linear(seen_BLO, layer.o, shape)

    normed_BLH = _norm(hidden_BLH, layer.mlp_norm_H, shape)
    gate_BLO = ACTIVATIONS[shape.activation](_linear(normed_BLH, layer.gate, shape))
    inner_BLO = gate_BLO * _linear(normed_BLH, layer.up, shape)
    return hidden_BLH + _linear(inner_BLO, layer.down, shape)


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
    """A linear layer with its adapter, W x + b + alpha / rank B A dropout(x).

    Source:
        Hu et al. 2021, equation 3.
    """
    y_BLO = F.linear(x_BLI, layer.weight_OI, layer.bias_O)
    if layer.lora_A_RI is None or layer.lora_B_OR is None:
        return y_BLO
    if layer.bits_BLI is not None and shape.dropout is not None:
        is_kept_BLI = layer.bits_BLI >= shape.dropout.threshold
        x_BLI = torch.where(is_kept_BLI, x_BLI * shape.dropout.scale, 0)
    inner_BLR = F.linear(x_BLI, layer.lora_A_RI.to(x_BLI.dtype))
    return y_BLO + F.linear(inner_BLR, (layer.lora_B_OR * shape.lora_scale).to(x_BLI.dtype))


def _heads(x_BLO: Tensor, groups: int, shape: LayerShape) -> Tensor:
    return x_BLO.view(*x_BLO.shape[:2], shape.kv_heads, groups, shape.head_width)


def _rotate(x_BLKGD: Tensor, positions: Positions) -> Tensor:
    """Rotary position embedding, on halves of a head.

    Source:
        Su et al. 2021, equation 34, with the pairs (i, i + D/2).
    """
    first, second = x_BLKGD.chunk(2, dim=-1)
    turned_BLKGD = torch.cat((-second, first), dim=-1)
    cos_L11D, sin_L11D = positions.cos_LD[:, None, None], positions.sin_LD[:, None, None]
    return x_BLKGD * cos_L11D + turned_BLKGD * sin_L11D


def _attend(heads: tuple[Tensor, Tensor, Tensor], mask_LL: Tensor, shape: LayerShape) -> Tensor:
    """Causal attention; the queries of a group share their keys without copies of them."""
    q_BLKGD, k_BLKGD, v_BLKGD = heads
    B, L, K, G, D = q_BLKGD.shape
    scale = shape.head_width**-0.5
    if L > LONGEST_BY_PRODUCTS:
        seen_BHLD = F.scaled_dot_product_attention(
            q_BLKGD.flatten(2, 3).transpose(1, 2),
            k_BLKGD.flatten(2, 3).transpose(1, 2),
            v_BLKGD.flatten(2, 3).transpose(1, 2),
            is_causal=True,
            scale=scale,
            enable_gqa=True,
        )
        return seen_BHLD.transpose(1, 2).reshape(B, L, K * G * D)
    q = q_BLKGD.permute(0, 2, 3, 1, 4).reshape(B * K, G * L, D)
    k = k_BLKGD.permute(0, 2, 3, 4, 1).reshape(B * K, D, L)
    v = v_BLKGD.permute(0, 2, 3, 1, 4).reshape(B * K, L, D)
    scores = torch.bmm(q, k).view(B * K, G, L, L).float() * scale + mask_LL
    weights = torch.softmax(scores, dim=-1).to(v.dtype).view(B * K, G * L, L)
    seen = torch.bmm(weights, v).view(B, K, G, L, D)
    return seen.permute(0, 3, 1, 2, 4).reshape(B, L, K * G * D)
