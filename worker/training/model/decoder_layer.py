"""One decoder layer of the Llama family, as a function of tensors.

`torch.compile` fuses the operations between the matrix products; the function also runs without it.
All layers of a model share one compiled graph, because everything that differs is an argument.

Dimension key:
    T  tokens of a micro-batch, laid end to end
    H  width of the model
    I  inputs of a linear layer
    O  its outputs
    R  rank of the adapter
    Q  query heads
    K  key and value heads
    D  width of a head
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.training.model.attention import Block, attend

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Positions(NamedTuple):
    """Where the tokens are in their rows. It is the same for every layer."""

    cos_TD: Tensor
    """Cosines of the rotary embedding."""
    sin_TD: Tensor
    blocks: Sequence[Block]
    """Which tokens see which."""


class Linear(NamedTuple):
    """A frozen linear layer and, if it is adapted, its adapter."""

    weight_OI: Tensor
    bias_O: Tensor | None = None
    lora_A_RI: Tensor | None = None
    lora_B_OR: Tensor | None = None
    is_kept_TI: Tensor | None = None
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
        return [linear.is_kept_TI for linear in linears if linear.is_kept_TI is not None]


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
    hidden_TH: Tensor, positions: Positions, layer: LayerTensors, shape: LayerShape
) -> Tensor:
    """Compute the input of the next layer from `hidden_TH`, in the dtype of `hidden_TH`."""
    q_TQD, k_TKD, v_TKD = _read(hidden_TH, positions.cos_TD, positions.sin_TD, layer, shape)
    seen_TQD = attend(q_TQD, k_TKD, v_TKD, positions.blocks)
    return _think(hidden_TH, seen_TQD, layer, shape)


def compile_layer() -> LayerFunction:
    """Compile what is before and after attention in `decoder_layer`, at its first call.

    Only the number of tokens may vary. With `dynamic=True` the width of a head could vary as well,
    and the compiled code would compute every address by divisions.
    """
    from torch._dynamo import mark_dynamic  # noqa: PLC0415 - takes seconds, and few jobs need it

    # The compiler looks for gradients where there are none, and torch warns of that.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    read = torch.compile(_read, fullgraph=True)
    think = torch.compile(_think, fullgraph=True)

    def run(
        hidden_TH: Tensor, positions: Positions, layer: LayerTensors, shape: LayerShape
    ) -> Tensor:
        cos_TD, sin_TD, blocks = positions
        if len(hidden_TH) > 1:
            for tensor_T in (hidden_TH, cos_TD, sin_TD, *layer.masks):
                mark_dynamic(tensor_T, 0)
        q_TQD, k_TKD, v_TKD = read(hidden_TH, cos_TD, sin_TD, layer, shape)
        seen_TQD = attend(q_TQD, k_TKD, v_TKD, blocks)
        if len(hidden_TH) > 1:
            mark_dynamic(seen_TQD, 0)
        return think(hidden_TH, seen_TQD, layer, shape)

    return run


def _read(
    hidden_TH: Tensor, cos_TD: Tensor, sin_TD: Tensor, layer: LayerTensors, shape: LayerShape
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    normed_TH = _norm(hidden_TH, layer.attention_norm_H, shape)
    q_TQD = _heads(_linear(normed_TH, layer.q, shape), shape)
    k_TKD = _heads(_linear(normed_TH, layer.k, shape), shape)
    v_TKD = _heads(_linear(normed_TH, layer.v, shape), shape)
    if layer.q_norm_D is not None and layer.k_norm_D is not None:
        q_TQD = _norm(q_TQD, layer.q_norm_D, shape)
        k_TKD = _norm(k_TKD, layer.k_norm_D, shape)
    return _rotate(q_TQD, cos_TD, sin_TD), _rotate(k_TKD, cos_TD, sin_TD), v_TKD


def _think(hidden_TH: Tensor, seen_TQD: Tensor, layer: LayerTensors, shape: LayerShape) -> Tensor:
    """What follows attention."""
    hidden_TH = hidden_TH + _linear(seen_TQD.flatten(1), layer.o, shape)
    normed_TH = _norm(hidden_TH, layer.mlp_norm_H, shape)
    gate_TO = ACTIVATIONS[shape.activation](_linear(normed_TH, layer.gate, shape))
    inner_TO = gate_TO * _linear(normed_TH, layer.up, shape)
    return hidden_TH + _linear(inner_TO, layer.down, shape)


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


def _linear(x_TI: Tensor, layer: Linear, shape: LayerShape) -> Tensor:
    """Apply a linear layer with its adapter: W x + b + alpha / rank B A dropout(x).

    Source:
        Hu et al. 2021, equation 3.
    """
    y_TO = F.linear(x_TI, layer.weight_OI, layer.bias_O)
    if layer.lora_A_RI is None or layer.lora_B_OR is None:
        return y_TO
    if layer.is_kept_TI is not None:
        x_TI = torch.where(layer.is_kept_TI, x_TI, 0)
    inner_TR = F.linear(x_TI, layer.lora_A_RI.to(x_TI.dtype))
    return y_TO + F.linear(inner_TR, (layer.lora_B_OR * shape.lora_scale).to(x_TI.dtype))


def _heads(x_TO: Tensor, shape: LayerShape) -> Tensor:
    return x_TO.unflatten(-1, (-1, shape.head_width))


def _rotate(x_TKD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary position embedding, on halves of a head.

    Source:
        Su et al. 2021, equation 34, with the pairs (i, i + D/2).
    """
    first, second = x_TKD.chunk(2, dim=-1)
    turned_TKD = torch.cat((-second, first), dim=-1)
    return x_TKD * cos_TD[:, None] + turned_TKD * sin_TD[:, None]
