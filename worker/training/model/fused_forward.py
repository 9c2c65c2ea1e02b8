"""The forward pass in our own words, for the architectures that are like Llama."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worker.training.data.batching import MicroBatch
from worker.training.model.cross_entropy import TokenScores, learned_targets, score_by_head
from worker.training.model.decoder_layer import (
    ACTIVATIONS,
    LayerShape,
    LayerTensors,
    Linear,
    Positions,
    decoder_layer,
)
from worker.training.model.dropout import DropoutKey, DropoutRate, Masks

_NORM_OFFSETS = {"gemma": 1.0, "llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0}
"""The architectures (`config.model_type`) that are known here. A test holds each to what the plain
code computes."""

KNOWN_ARCHITECTURES = frozenset(_NORM_OFFSETS)

_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_HEAD_NORMS = frozenset({"q_norm", "k_norm"})
_LAYER = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})

LayerFunction = Callable[[Tensor, Positions, LayerTensors, LayerShape], Tensor]


class FusedForward:
    """Runs our layers on the weights of a `transformers` model with a `peft` adapter.

    Args:
        model: of an architecture for which `why_not` has no objection.
        layer: `decoder_layer`, or a compiled form of it.
        is_checkpointing: whether each layer is computed a second time for its backward pass, so
            that only what lies between the layers is kept. The same result to the last bit.
    """

    def __init__(
        self,
        model: PeftModel,
        *,
        layer: LayerFunction = decoder_layer,
        is_checkpointing: bool = False,
    ) -> None:
        self.model = model
        base: Any = model.get_base_model()
        self._head: Tensor = base.get_output_embeddings().weight
        self._decoder: Any = base.base_model
        self._run_layer = layer
        self._is_checkpointing = is_checkpointing
        self._layers = [_tensors_of(one) for one in self._decoder.layers]
        adapters = [one for one in self._decoder.modules() if isinstance(one, LoraLayer)]
        self._shape = _shape_of(base.config, adapters[0])
        self._dropout = _dropout_of(adapters[0])
        scale = self._shape.lora_scale * (self._dropout.scale if self._dropout else 1)
        self._shape_with_dropout = dataclasses.replace(self._shape, lora_scale=scale)

    def score(self, batch: MicroBatch, dropout: DropoutKey | None) -> TokenScores:
        batch = batch.to(self._head.device)
        hidden_BLH = self._read(batch, dropout)
        is_learned_BL, targets_N = learned_targets(batch)
        hidden_NH = self._decoder.norm(hidden_BLH[:, :-1][is_learned_BL])
        return score_by_head(hidden_NH, self._head, targets_N)

    def _read(self, batch: MicroBatch, dropout: DropoutKey | None) -> Tensor:
        hidden_BLH: Tensor = self._decoder.embed_tokens(batch.input_ids_BL)
        # The first layer's input has no use for a gradient, but all layers share one graph.
        hidden_BLH = hidden_BLH.requires_grad_(torch.is_grad_enabled())
        length = hidden_BLH.shape[1]
        places_1L = torch.arange(length, device=hidden_BLH.device)[None]
        cos_1LD, sin_1LD = self._decoder.rotary_emb(hidden_BLH, places_1L)
        mask_LL = hidden_BLH.new_full((length, length), -torch.inf, requires_grad=False).triu(1)
        positions = Positions(cos_1LD[0], sin_1LD[0], mask_LL)
        masks = None
        if dropout is not None and self._dropout is not None:
            masks = Masks(dropout, batch, self._dropout, layers=len(self._layers))
        is_checkpointing = self._is_checkpointing and torch.is_grad_enabled()
        for index in range(len(self._layers)):
            run = partial(self._run, positions=positions, index=index, masks=masks)
            if is_checkpointing:
                kept = checkpoint(run, hidden_BLH, use_reentrant=False, preserve_rng_state=False)
                hidden_BLH = cast("Tensor", kept)
            else:
                hidden_BLH = run(hidden_BLH)
        return hidden_BLH

    def _run(
        self,
        hidden_BLH: Tensor,
        *,
        positions: Positions,
        index: int,
        masks: Masks | None,
    ) -> Tensor:
        layer = self._layers[index]
        if masks is None:
            return self._run_layer(hidden_BLH, positions, layer, self._shape)
        adapted = _adapted(layer)
        drawn = masks.draw(index, [linear.weight_OI.shape[1] for linear in adapted.values()])
        changes: dict[str, Any] = {
            name: linear._replace(is_kept_BLI=is_kept_BLI.to(hidden_BLH.device))
            for (name, linear), is_kept_BLI in zip(adapted.items(), drawn, strict=True)
        }
        layer = layer._replace(**changes)
        return self._run_layer(hidden_BLH, positions, layer, self._shape_with_dropout)


def why_not(model: PeftModel, *, longest_row: int) -> str | None:
    """What keeps a model from `FusedForward`, in words for its user; None when nothing does."""
    base: Any = model.get_base_model()
    config = base.config
    if config.model_type not in KNOWN_ARCHITECTURES:
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
    heads = config.num_attention_heads
    return LayerShape(
        query_groups=heads // config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        norm_epsilon=config.rms_norm_eps,
        norm_offset=_NORM_OFFSETS[config.model_type],
        activation=config.hidden_act,
        lora_scale=adapter.scaling[name],
    )


def _dropout_of(adapter: LoraLayer) -> DropoutRate | None:
    (name,) = adapter.active_adapters
    probability = getattr(cast("Any", adapter.lora_dropout)[name], "p", 0.0)
    return DropoutRate.of(probability) if probability else None


def _adapted(layer: LayerTensors) -> dict[str, Linear]:
    """Its linear layers that have an adapter, by field, in their order."""
    linears = ((name, one) for name, one in layer._asdict().items() if isinstance(one, Linear))
    return {name: linear for name, linear in linears if linear.lora_A_RI is not None}
