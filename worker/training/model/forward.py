"""Two ways to run a model: the reference layers of the libraries, and our faster, fused layers.

Both return the log-probabilities of the learned tokens; a loss is any function of these.
"""

import dataclasses
from functools import partial
from typing import Any, Protocol, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worker.training.data.batching import MicroBatch
from worker.training.model.base_model import ModelShape
from worker.training.model.cross_entropy import (
    TargetLogProbs,
    learned_targets,
    linear_log_probs,
    logits_log_probs,
)
from worker.training.model.decoder_layer import (
    ACTIVATIONS,
    LayerFunction,
    LayerShape,
    LayerTensors,
    Linear,
    Positions,
    decoder_layer,
)
from worker.training.model.packing import PackedRows, pack
from worker.training.model.randomness import DropoutKey, DropoutRate, Masks, seed_torch

PLAIN_HEADS = frozenset({"gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
"""Architectures (`config.model_type`) whose logits are the last hidden state times the output
embedding and nothing else: no scale, no soft cap, no bias. A test holds each to that."""

_NORM_OFFSETS = {"gemma": 1.0, "llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0}
"""Architectures (`config.model_type`) with fused layers. A test holds each to the reference."""

_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_HEAD_NORMS = frozenset({"q_norm", "k_norm"})
_LAYER = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
_MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})


class Forward(Protocol):
    """Runs a model on micro-batches."""

    model: PeftModel
    is_padded: bool
    """Whether it computes padding, and what rows have in common more than once."""

    def log_probs(self, batch: MicroBatch, dropout: DropoutKey | None) -> TargetLogProbs:
        """Log-probability of each learned token, given the tokens before it.

        Args:
            batch: rows of tokens.
            dropout: names the dropout masks of a training step; None to evaluate.
        """
        ...


class ReferenceForward:
    """Runs the layers of `transformers` and `peft`. Works for every architecture.

    Dropout masks depend on how a batch is cut into micro-batches.

    Args:
        model: a model of any architecture.
        is_checkpointing: whether each layer is computed a second time for its backward pass.
    """

    is_padded = True

    def __init__(self, model: PeftModel, *, is_checkpointing: bool = False) -> None:
        self.model = model
        if is_checkpointing:
            base: Any = model.get_base_model()
            base.activation_checkpointing_enable({"use_reentrant": False})

    def log_probs(self, batch: MicroBatch, dropout: DropoutKey | None) -> TargetLogProbs:
        batch = batch.to(self.model.device)
        self.model.train(dropout is not None)
        if dropout is not None:
            seed_torch(dropout.seed, dropout.step, batch.examples[0])
        base: Any = self.model.get_base_model()
        is_learned_BL, targets_N = learned_targets(batch)
        if base.config.model_type not in PLAIN_HEADS:
            logits_BLV = base(input_ids=batch.input_ids_BL, use_cache=False).logits
            return logits_log_probs(logits_BLV[:, :-1][is_learned_BL].float(), targets_N)
        hidden_BLH = base.base_model(
            input_ids=batch.input_ids_BL, use_cache=False
        ).last_hidden_state
        head_VH = base.get_output_embeddings().weight
        return linear_log_probs(hidden_BLH[:, :-1][is_learned_BL], head_VH, targets_N)


class FusedForward:
    """Runs our layers on the weights of a `transformers` model with a `peft` adapter.

    The rows of a micro-batch are laid end to end, and what they have in common at their beginnings
    is computed once.

    Args:
        model: a model that passes `why_not_fused` and `has_fused_layers`.
        layer: `decoder_layer`, or a compiled form of it.
        is_checkpointing: whether each layer is computed a second time for its backward pass, so
            that only the tensors between the layers are kept. This changes no bit of the result.
    """

    is_padded = False

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
        self._dtype: torch.dtype = base.dtype
        self._decoder: Any = base.base_model
        self._run_layer = layer
        self._is_checkpointing = is_checkpointing
        self._layers = [layer_tensors(each) for each in self._decoder.layers]
        self._first = _first_with_gradient(self._decoder.embed_tokens, self._layers)
        adapters = [module for module in self._decoder.modules() if isinstance(module, LoraLayer)]
        self._shape = layer_shape(base.config, lora_scale=_scale_of(adapters[0]))
        self._dropout = _dropout_of(adapters[0])
        scale = self._shape.lora_scale * (self._dropout.scale if self._dropout else 1)
        self._shape_with_dropout = dataclasses.replace(self._shape, lora_scale=scale)

    def log_probs(self, batch: MicroBatch, dropout: DropoutKey | None) -> TargetLogProbs:
        packed = pack(batch).to(self._head.device, self._dtype)
        hidden_TH = self._read(packed, dropout)
        hidden_UH = self._decoder.norm(hidden_TH[packed.places_U])
        predicted = linear_log_probs(hidden_UH, self._head, packed.targets_U)
        return TargetLogProbs(
            predicted.log_probs_N[packed.pairs_N], predicted.is_top_N[packed.pairs_N]
        )

    def _read(self, packed: PackedRows, dropout: DropoutKey | None) -> Tensor:
        hidden_TH: Tensor = self._decoder.embed_tokens(packed.input_ids_T)
        cos_1TD, sin_1TD = self._decoder.rotary_emb(hidden_TH, packed.depths_T[None])
        positions = Positions(cos_1TD[0], sin_1TD[0], packed.blocks)
        masks = None
        if dropout is not None and self._dropout is not None:
            masks = Masks(dropout, packed.drawn, self._dropout, layers=len(self._layers))
        is_checkpointing = self._is_checkpointing and torch.is_grad_enabled()
        with torch.no_grad():
            for index in range(self._first):
                hidden_TH = self._run(hidden_TH, positions=positions, index=index, masks=None)
        # The first adapted layer's input needs no gradient, but all layers share one graph.
        hidden_TH = hidden_TH.requires_grad_(torch.is_grad_enabled())
        for index in range(self._first, len(self._layers)):
            run = partial(self._run, positions=positions, index=index, masks=masks)
            if is_checkpointing:
                output = checkpoint(run, hidden_TH, use_reentrant=False, preserve_rng_state=False)
                hidden_TH = cast("Tensor", output)
            else:
                hidden_TH = run(hidden_TH)
        return hidden_TH

    def _run(
        self,
        hidden_TH: Tensor,
        *,
        positions: Positions,
        index: int,
        masks: Masks | None,
    ) -> Tensor:
        layer = self._layers[index]
        if masks is None:
            return self._run_layer(hidden_TH, positions, layer, self._shape)
        adapted = _adapted(layer)
        drawn = masks.draw(index, [linear.weight_OI.shape[1] for linear in adapted.values()])
        changes: dict[str, Any] = {
            name: linear._replace(is_kept_TI=is_kept_TI.to(hidden_TH.device))
            for (name, linear), is_kept_TI in zip(adapted.items(), drawn, strict=True)
        }
        layer = layer._replace(**changes)
        return self._run_layer(hidden_TH, positions, layer, self._shape_with_dropout)


def why_not_fused(shape: ModelShape, *, longest_row: int) -> str | None:
    """Why a base model needs the reference layers, in words for the user. None if it does not."""
    architecture = shape.architecture
    if architecture not in _NORM_OFFSETS:
        return f"the architecture {architecture} is not one of {', '.join(_NORM_OFFSETS)}"
    if shape.attention_window is not None and shape.attention_window < longest_row:
        return f"rows are longer than its attention window of {shape.attention_window:,} tokens"
    if shape.activation not in ACTIVATIONS:
        return f"its activation {shape.activation} is not supported"
    if shape.has_attention_dropout:
        return "it has dropout in its attention"
    return None


def has_fused_layers(base: Any) -> bool:
    """Whether the layers of a loaded base model are those that fused layers can stand for."""
    return base.config.model_type in _NORM_OFFSETS and all(map(_is_known, base.base_model.layers))


def _is_known(layer: nn.Module) -> bool:
    attention, mlp = cast("nn.Module", layer.self_attn), cast("nn.Module", layer.mlp)
    return (
        {name for name, _ in layer.named_children()} == _LAYER
        and {name for name, _ in attention.named_children()} - _HEAD_NORMS == _ATTENTION
        and {name for name, _ in mlp.named_children()} == _MLP
    )


def layer_tensors(layer: Any) -> LayerTensors:
    """The weights of a decoder layer of `transformers`, with those of its adapter."""
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
    lora_a, lora_b = (cast("Any", half)[name].weight for half in (module.lora_A, module.lora_B))
    return Linear(base.weight, base.bias, lora_a, lora_b)


def layer_shape(config: Any, *, lora_scale: float) -> LayerShape:
    """What all layers of a model with this configuration share."""
    heads = config.num_attention_heads
    return LayerShape(
        query_groups=heads // config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        norm_epsilon=config.rms_norm_eps,
        norm_offset=_NORM_OFFSETS[config.model_type],
        activation=config.hidden_act,
        lora_scale=lora_scale,
    )


def _scale_of(adapter: LoraLayer) -> float:
    (name,) = adapter.active_adapters
    return adapter.scaling[name]


def _dropout_of(adapter: LoraLayer) -> DropoutRate | None:
    (name,) = adapter.active_adapters
    probability = getattr(cast("Any", adapter.lora_dropout)[name], "p", 0.0)
    return DropoutRate.of(probability) if probability else None


def _first_with_gradient(embeddings: nn.Module, layers: list[LayerTensors]) -> int:
    """Index of the first layer with a backward pass: the first with an adapter.

    It is the first of all if the embeddings below it are trained.
    """
    if any(weight.requires_grad for weight in embeddings.parameters()):
        return 0
    return next(index for index, layer in enumerate(layers) if _adapted(layer))


def _adapted(layer: LayerTensors) -> dict[str, Linear]:
    """The linear layers with an adapter, by field, in their order."""
    return {
        name: field
        for name, field in layer._asdict().items()
        if isinstance(field, Linear) and field.lora_A_RI is not None
    }
