"""Two ways to run a model: the reference layers of the libraries, and our faster, fused layers.

Both return the log-probabilities of the learned tokens; a loss is any function of these.
"""

import dataclasses
from collections.abc import Iterable
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
    Positions,
    decoder_layer,
)
from worker.training.model.kept_states import KeptStates
from worker.training.model.layer_weights import (
    NORM_OFFSETS,
    adapted,
    dropout_of,
    first_with_gradient,
    layer_shape,
    layer_tensors,
    scale_of,
)
from worker.training.model.packing import PackedRows, pack
from worker.training.model.randomness import DropoutKey, Masks, seed_torch

PLAIN_HEADS = frozenset({"gemma", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
"""Architectures (`config.model_type`) whose logits are the last hidden state times the output
embedding and nothing else: no scale, no soft cap, no bias. A test holds each to that."""

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

    Attributes:
        kept: outputs of the lower layers for datasets, by their digests. Empty until `keep`.

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
        self._first = first_with_gradient(self._decoder.embed_tokens, self._layers)
        adapters = [module for module in self._decoder.modules() if isinstance(module, LoraLayer)]
        self._shape = layer_shape(base.config, lora_scale=scale_of(adapters[0]))
        self._dropout = dropout_of(adapters[0])
        scale = self._shape.lora_scale * (self._dropout.scale if self._dropout else 1)
        self._shape_with_dropout = dataclasses.replace(self._shape, lora_scale=scale)
        self.kept: dict[str, KeptStates] = {}

    def keep(self, batches: Iterable[MicroBatch], states: KeptStates, *, dataset: str) -> None:
        """Compute the layers below the first with a backward pass for a whole dataset, once.

        Args:
            batches: all rows of the dataset.
            states: where their outputs are kept, for `log_probs` to read.
            dataset: digest of the dataset.
        """
        for batch in batches:
            packed = pack(batch).to(self._head.device, self._dtype)
            states.write(batch.examples, packed.places, self._read_below(packed))
        self.kept[dataset] = states

    def log_probs(self, batch: MicroBatch, dropout: DropoutKey | None) -> TargetLogProbs:
        packed = pack(batch).to(self._head.device, self._dtype)
        kept = self.kept.get(batch.dataset)
        if kept is None:
            hidden_TH = self._read_below(packed)
        else:
            hidden_TH = kept.read(batch.examples, packed.segments)
        hidden_TH = self._read_above(hidden_TH, packed, dropout)
        hidden_UH = self._decoder.norm(hidden_TH[packed.places_U])
        predicted = linear_log_probs(hidden_UH, self._head, packed.targets_U)
        return TargetLogProbs(
            predicted.log_probs_N[packed.pairs_N], predicted.is_top_N[packed.pairs_N]
        )

    def _positions(self, hidden_TH: Tensor, packed: PackedRows) -> Positions:
        cos_1TD, sin_1TD = self._decoder.rotary_emb(hidden_TH, packed.depths_T[None])
        return Positions(cos_1TD[0], sin_1TD[0], packed.blocks)

    def _read_below(self, packed: PackedRows) -> Tensor:
        """What enters the first layer with a backward pass."""
        hidden_TH: Tensor = self._decoder.embed_tokens(packed.input_ids_T)
        if self._first == 0:
            return hidden_TH
        positions = self._positions(hidden_TH, packed)
        with torch.no_grad():
            for index in range(self._first):
                hidden_TH = self._run(hidden_TH, positions=positions, index=index, masks=None)
        return hidden_TH

    def _read_above(
        self, hidden_TH: Tensor, packed: PackedRows, dropout: DropoutKey | None
    ) -> Tensor:
        positions = self._positions(hidden_TH, packed)
        masks = None
        if dropout is not None and self._dropout is not None:
            masks = Masks(dropout, packed.drawn, self._dropout, layers=len(self._layers))
        is_checkpointing = self._is_checkpointing and torch.is_grad_enabled()
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
        linears = adapted(layer)
        drawn = masks.draw(index, [linear.weight_OI.shape[1] for linear in linears.values()])
        changes: dict[str, Any] = {
            name: linear._replace(is_kept_TI=is_kept_TI.to(hidden_TH.device))
            for (name, linear), is_kept_TI in zip(linears.items(), drawn, strict=True)
        }
        layer = layer._replace(**changes)
        return self._run_layer(hidden_TH, positions, layer, self._shape_with_dropout)


def why_not_fused(shape: ModelShape, *, longest_row: int) -> str | None:
    """Why a base model needs the reference layers, in words for the user. None if it does not."""
    architecture = shape.architecture
    if architecture not in NORM_OFFSETS:
        return f"the architecture {architecture} is not one of {', '.join(NORM_OFFSETS)}"
    if shape.attention_window is not None and shape.attention_window < longest_row:
        return f"rows are longer than its attention window of {shape.attention_window:,} tokens"
    if shape.activation not in ACTIVATIONS:
        return f"its activation {shape.activation} is not supported"
    if shape.has_attention_dropout:
        return "it has dropout in its attention"
    return None


def has_fused_layers(base: Any) -> bool:
    """Whether the layers of a loaded base model are those that fused layers can stand for."""
    return base.config.model_type in NORM_OFFSETS and all(map(_is_known, base.base_model.layers))


def _is_known(layer: nn.Module) -> bool:
    attention, mlp = cast("nn.Module", layer.self_attn), cast("nn.Module", layer.mlp)
    return (
        {name for name, _ in layer.named_children()} == _LAYER
        and {name for name, _ in attention.named_children()} - _HEAD_NORMS == _ATTENTION
        and {name for name, _ in mlp.named_children()} == _MLP
    )
