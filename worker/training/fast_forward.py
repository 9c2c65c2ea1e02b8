"""The forward pass in our own words, for the architectures that are like Llama."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from worker.training.batching import MicroBatch
from worker.training.decoder_layer import (
    ACTIVATIONS,
    LayerShape,
    LayerTensors,
    Linear,
    Positions,
    decoder_layer,
)
from worker.training.dropout import DropoutKey, DropoutRate, random_bits
from worker.training.losses import TokenScores, learned_targets, score_by_head

_NORM_OFFSETS = {"gemma": 1.0, "llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0}
"""The architectures (`config.model_type`) that are known here. A test holds each to what the plain
code computes."""

_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_HEAD_NORMS = frozenset({"q_norm", "k_norm"})
_LAYER = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})

LayerFunction = Callable[[Tensor, Positions, LayerTensors, LayerShape], Tensor]


class FastForward:
    """Runs our layers on the weights of a `transformers` model with a `peft` adapter.

    Args:
        model: of an architecture for which `why_not` has no objection.
        layer: `decoder_layer`, or a compiled form of it.
    """

    def __init__(self, model: PeftModel, *, layer: LayerFunction = decoder_layer) -> None:
        self.model = model
        base: Any = model.get_base_model()
        self._head: Tensor = base.get_output_embeddings().weight
        self._decoder: Any = base.base_model
        self._run_layer = layer
        self._layers = [_tensors_of(one) for one in self._decoder.layers]
        adapters = [one for one in self._decoder.modules() if isinstance(one, LoraLayer)]
        self._widths = [
            linear.weight_OI.shape[1] for one in self._layers for linear in _adapted(one).values()
        ]
        self._shape = _shape_of(base.config, adapters[0])
        self._shape_without_dropout = dataclasses.replace(self._shape, dropout=None)

    def score(self, batch: MicroBatch, dropout: DropoutKey | None) -> TokenScores:
        hidden_BLH = self._read(batch, dropout)
        is_learned_BL, targets_N = learned_targets(batch)
        hidden_NH = self._decoder.norm(hidden_BLH[:, :-1][is_learned_BL])
        return score_by_head(hidden_NH, self._head, targets_N)

    def _read(self, batch: MicroBatch, dropout: DropoutKey | None) -> Tensor:
        hidden_BLH: Tensor = self._decoder.embed_tokens(batch.input_ids_BL)
        # The first layer's input has no use for a gradient, but all layers share one graph.
        hidden_BLH = hidden_BLH.requires_grad_(torch.is_grad_enabled())
        length = hidden_BLH.shape[1]
        cos_1LD, sin_1LD = self._decoder.rotary_emb(hidden_BLH, torch.arange(length)[None])
        mask_LL = torch.full((length, length), -torch.inf).triu(1)
        positions = Positions(cos_1LD[0], sin_1LD[0], mask_LL)
        shape, layers = self._shape_without_dropout, iter(self._layers)
        if dropout is not None and self._shape.dropout is not None:
            shape = self._shape
            bits = random_bits(dropout, batch, self._widths)
            layers = (_with_bits(layer, bits) for layer in self._layers)
        for layer in layers:
            hidden_BLH = self._run_layer(hidden_BLH, positions, layer, shape)
        return hidden_BLH


def why_not(model: PeftModel, *, longest_row: int) -> str | None:
    """What keeps a model from `FastForward`, in words for its user; None when nothing does."""
    base: Any = model.get_base_model()
    config = base.config
    if config.model_type not in _NORM_OFFSETS:
        return f"the architecture {config.model_type} is not one of {', '.join(_NORM_OFFSETS)}"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest_row:
        return f"rows are longer than its attention window of {window:,} tokens"
    if config.hidden_act not in ACTIVATIONS:
        return f"its activation {config.hidden_act} is not known"
    if getattr(config, "attention_dropout", 0.0):
        return "it has dropout in its attention"
    for layer in base.base_model.layers:
        if not _is_known(layer):
            return f"its layers are not those of {config.model_type}"
    return None


def _is_known(layer: nn.Module) -> bool:
    attention, mlp = cast("nn.Module", layer.self_attn), cast("nn.Module", layer.mlp)
    return (
        {name for name, _ in layer.named_children()} == _LAYER
        and {name for name, _ in attention.named_children()} - _HEAD_NORMS == _ATTENTION
        and {name for name, _ in mlp.named_children()} == _MLP
    )


def _tensors_of(layer: Any) -> LayerTensors:
    attention, mlp = layer.self_attn, layer.mlp
    has_head_norms = hasattr(attention, "q_norm")
    return LayerTensors(
        attention_norm_H=layer.input_layernorm.weight,
        q=_linear_of(attention.q_proj),
        k=_linear_of(attention.k_proj),
        v=_linear_of(attention.v_proj),
        o=_linear_of(attention.o_proj),
        q_norm_D=attention.q_norm.weight if has_head_norms else None,
        k_norm_D=attention.k_norm.weight if has_head_norms else None,
        mlp_norm_H=layer.post_attention_layernorm.weight,
        gate=_linear_of(mlp.gate_proj),
        up=_linear_of(mlp.up_proj),
        down=_linear_of(mlp.down_proj),
    )


def _linear_of(module: Any) -> Linear:
    if not isinstance(module, LoraLayer):
        return Linear(module.weight, module.bias)
    (name,) = module.active_adapters
    base: Any = module.get_base_layer()
    lora_a, lora_b = (cast("Any", one)[name].weight for one in (module.lora_A, module.lora_B))
    return Linear(base.weight, base.bias, lora_a, lora_b)


def _shape_of(config: Any, adapter: LoraLayer) -> LayerShape:
    (name,) = adapter.active_adapters
    probability = getattr(cast("Any", adapter.lora_dropout)[name], "p", 0.0)
    heads = config.num_attention_heads
    return LayerShape(
        kv_heads=config.num_key_value_heads,
        query_groups=heads // config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        norm_epsilon=config.rms_norm_eps,
        norm_offset=_NORM_OFFSETS[config.model_type],
        activation=config.hidden_act,
        lora_scale=adapter.scaling[name],
        dropout=DropoutRate.of(probability) if probability else None,
    )


def _adapted(layer: LayerTensors) -> dict[str, Linear]:
    """Its linear layers that have an adapter, by field, in their order."""
    linears = ((name, one) for name, one in layer._asdict().items() if isinstance(one, Linear))
    return {name: linear for name, linear in linears if linear.lora_A_RI is not None}


def _with_bits(layer: LayerTensors, bits: Iterator[Tensor]) -> LayerTensors:
    """Hand the next random bits to each adapted linear layer, in their order."""
    changes: dict[str, Any] = {
        name: linear._replace(bits_BLI=next(bits)) for name, linear in _adapted(layer).items()
    }
    return layer._replace(**changes)
