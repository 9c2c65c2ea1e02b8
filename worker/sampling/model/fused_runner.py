"""Runs decoder-only models of the Llama family, as fast as the products with their weights allow.

All rows of a batch lie side by side, so each weight is read once for all of them. What is between
the products is written for few operations, because a token has so little work that each of them
counts.

Dimension key:
    T  tokens of all rows
    B  rows
    H  width of the model
    O  outputs of a linear layer
    V  vocabulary
    Q  query heads
    K  key and value heads
    G  query heads for each key and value head
    N  query heads, key heads and value heads
    L  tokens of one row
    D  width of a head
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from worker.sampling.model.adapter_files import AdapterFiles, ModuleSizes, read_adapter
from worker.sampling.model.batch import Batch, FusedAdapter, RowInBatch
from worker.sampling.model.cache import CacheShape, FusedCache
from worker.sampling.model.fused_layers import (
    FusedLayer,
    FusedLinear,
    adapt_layers,
    norm_weight,
    take_layers,
)
from worker.sampling.model.runner import Row
from worker.training.model.decoder_layer import ACTIVATIONS
from worker.training.model.layer_weights import layer_shape


class FusedRunner:
    """Runs our layers on the weights of a `transformers` model.

    Args:
        model: a base model that `why_not_fused` and `has_fused_layers` let pass. It loses its own
            layers.
        window: maximum number of tokens of a sequence.
    """

    def __init__(self, model: Any, *, window: int) -> None:
        self.window = window
        self._sizes = ModuleSizes.of(model)
        self._shape = layer_shape(model.config, lora_scale=1.0)
        self._heads = model.config.num_attention_heads
        self._kv_heads = model.config.num_key_value_heads
        self._activate = ACTIVATIONS[self._shape.activation]
        self._embed: nn.Module = model.get_input_embeddings()
        self._head_VH: Tensor = model.get_output_embeddings().weight.detach()
        decoder = model.base_model
        self._rotary: nn.Module = decoder.rotary_emb
        self._norm_H = norm_weight(decoder.norm.weight, self._shape)
        self._prefix = model.base_model_prefix
        self._layers = take_layers(decoder, self._shape)
        self._cache_shape = CacheShape(
            layers=len(self._layers),
            heads=self._kv_heads,
            head_width=self._shape.head_width,
            dtype=self._head_VH.dtype,
            device=self._head_VH.device,
        )

    @property
    def vocabulary(self) -> int:
        return len(self._head_VH)

    @property
    def bytes(self) -> int:
        embeddings = (self._head_VH, *self._embed.parameters())
        without_tied = {weight.data_ptr(): weight.nbytes for weight in embeddings}
        return sum(without_tied.values()) + sum(layer.bytes for layer in self._layers)

    @property
    def bytes_per_token(self) -> int:
        return self._cache_shape.bytes_per_token

    def new_cache(self) -> FusedCache:
        return FusedCache(self._cache_shape)

    def load_adapter(self, files: AdapterFiles) -> FusedAdapter:
        weights = read_adapter(files, self._sizes)
        layers = adapt_layers(self._layers, weights, prefix=f"{self._prefix}.layers")
        embeddings = {
            name: weight_VH.to(self._head_VH) for name, weight_VH in weights.embeddings.items()
        }
        input_VH = embeddings.get(f"{self._prefix}.embed_tokens")
        head_VH = embeddings.get("lm_head")
        if input_VH is not None and head_VH is not None and torch.equal(input_VH, head_VH):
            head_VH = input_VH  # one matrix, which the file had to name twice
        return FusedAdapter(layers, input_VH, head_VH)

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> Tensor:
        batch = Batch(rows, self._cache_shape)
        hidden_TH = self._embed_tokens(batch)
        cos_1TD, sin_1TD = self._rotary(hidden_TH, batch.places_T[None])
        cos_T1D, sin_T1D = cos_1TD[0, :, None], sin_1TD[0, :, None].clone()
        sin_T1D[..., : self._shape.head_width // 2].neg_()
        for index, layer in enumerate(self._layers):
            qkv_TND = self._read_heads(hidden_TH, layer, batch, index)
            _rotate(qkv_TND[:, : -self._kv_heads], cos_T1D, sin_T1D)
            seen_TH = self._attend(qkv_TND, batch, index)
            hidden_TH = hidden_TH + _linear(seen_TH, layer.o, batch, index, 1)
            hidden_TH = hidden_TH + self._think(hidden_TH, layer, batch, index)
        logits_BV = self._score(hidden_TH, batch)
        batch.finish()
        return logits_BV

    def _embed_tokens(self, batch: Batch) -> Tensor:
        pieces_TH = [
            self._embed(batch.tokens_T[segment.tokens])
            if segment.adapter is None or segment.adapter.input_VH is None
            else functional_call(
                self._embed, {"weight": segment.adapter.input_VH}, (batch.tokens_T[segment.tokens],)
            )
            for segment in batch.segments
        ]
        return torch.cat(pieces_TH) if len(pieces_TH) > 1 else pieces_TH[0]

    def _norm(self, x_H: Tensor, weight_H: Tensor | None) -> Tensor:
        return F.rms_norm(x_H, x_H.shape[-1:], weight_H, self._shape.norm_epsilon)

    def _read_heads(self, hidden_TH: Tensor, layer: FusedLayer, batch: Batch, index: int) -> Tensor:
        """Queries, keys and values, in this order, before the rotary embedding."""
        normed_TH = self._norm(hidden_TH, layer.attention_norm_H)
        qkv_TO = _linear(normed_TH, layer.qkv, batch, index, 0)
        qkv_TND = qkv_TO.view(len(qkv_TO), -1, self._shape.head_width)
        if layer.head_norms_ND is not None:
            qk_TND = qkv_TND[:, : -self._kv_heads]
            torch.mul(self._norm(qk_TND, None), layer.head_norms_ND, out=qk_TND)
        return qkv_TND

    def _attend(self, qkv_TND: Tensor, batch: Batch, index: int) -> Tensor:
        T, _, D = qkv_TND.shape
        q_TKGD = qkv_TND[:, : self._heads].view(T, self._kv_heads, -1, D)
        new_T2KD = qkv_TND[:, self._heads :].view(T, 2, self._kv_heads, D)
        news = new_T2KD.permute(1, 2, 0, 3).split(batch.lengths, dim=2)
        seen_LKGD: list[Tensor] = []
        for row, q_LKGD, new_2KLD in zip(
            batch.rows, q_TKGD.split(batch.lengths), news, strict=True
        ):
            row.kept_2KLD[index].copy_(new_2KLD)
            seen_LKGD.append(self._attend_row(q_LKGD, row, index))
        return torch.cat(seen_LKGD).flatten(1)

    def _attend_row(self, q_LKGD: Tensor, row: RowInBatch, index: int) -> Tensor:
        keys_1KSD, values_1KSD = row.keys_1KSD[index], row.values_1KSD[index]
        if row.length == 1:
            # The queries of one token that share keys are as several tokens of one query head.
            return F.scaled_dot_product_attention(q_LKGD, keys_1KSD, values_1KSD)
        seen_1QLD = F.scaled_dot_product_attention(
            q_LKGD.flatten(1, 2).transpose(0, 1)[None],
            keys_1KSD,
            values_1KSD,
            attn_mask=row.mask_LS,
            is_causal=row.mask_LS is None,
            enable_gqa=self._shape.query_groups > 1,
        )
        return seen_1QLD[0].transpose(0, 1).reshape(q_LKGD.shape)

    def _think(self, hidden_TH: Tensor, layer: FusedLayer, batch: Batch, index: int) -> Tensor:
        normed_TH = self._norm(hidden_TH, layer.mlp_norm_H)
        gate_TO, up_TO = _linear(normed_TH, layer.gate_up, batch, index, 2).chunk(2, dim=-1)
        return _linear(self._activate(gate_TO).mul_(up_TO), layer.down, batch, index, 3)

    def _score(self, hidden_TH: Tensor, batch: Batch) -> Tensor:
        """Logits after the last token of each row, in the order in which the rows were given."""
        last_BH = self._norm(hidden_TH[batch.last_B], self._norm_H)
        if all(each.adapter is None or each.adapter.head_VH is None for each in batch.segments):
            logits_BV = F.linear(last_BH, self._head_VH).float()
        else:
            logits_BV = last_BH.new_empty((len(last_BH), self.vocabulary), dtype=torch.float32)
            for segment in batch.segments:
                own_VH = segment.adapter.head_VH if segment.adapter else None
                head_VH = self._head_VH if own_VH is None else own_VH
                logits_BV[segment.rows] = F.linear(last_BH[segment.rows], head_VH).float()
        return logits_BV if batch.is_in_order else logits_BV[batch.places_of_rows_B]


def _linear(x_TI: Tensor, linear: FusedLinear, batch: Batch, index: int, place: int) -> Tensor:
    """Apply a linear layer, with the adapter of each row."""
    y_TO = F.linear(x_TI, linear.weight_OI, linear.bias_O)
    for layers, tokens in batch.adapted:
        low_rank = layers[index][place]
        if low_rank is not None:
            low_rank.add_to(y_TO[tokens], x_TI[tokens])
    return y_TO


def _rotate(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> None:
    """Rotary position embedding, on halves of a head, in place.

    Source:
        Su et al. 2021, equation 34, with the pairs (i, i + D/2).

    Args:
        x_TND: queries and keys.
        cos_T1D: cosines.
        sin_T1D: sines, the first half of them negative.
    """
    turned_TND = x_TND.roll(x_TND.shape[-1] // 2, -1)
    x_TND.mul_(cos_T1D).addcmul_(turned_TND, sin_T1D)
