"""Rows of a batch, side by side without padding.

Dimension key:
    T  tokens of all rows
    L  tokens of one row
    S  tokens of one row, with those that it has read before
    K  key and value heads
    D  width of a head
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from worker.sampling.model.cache import CacheShape, FusedCache
from worker.sampling.model.fused_layers import AdaptedLayer
from worker.sampling.model.runner import Row


@dataclass(frozen=True, slots=True)
class FusedAdapter:
    layers: Sequence[AdaptedLayer]
    input_VH: Tensor | None
    """Input embedding that takes the place of the base model's."""
    head_VH: Tensor | None
    """Output embedding that takes the place of the base model's."""

    @property
    def bytes(self) -> int:
        own = {id(each): each.nbytes for each in (self.input_VH, self.head_VH) if each is not None}
        return sum(own.values()) + sum(layer.bytes for layer in self.layers)


class RowInBatch(NamedTuple):
    """Where a row is, and its memory in each layer."""

    tokens: slice
    length: int
    kept_2KLD: Sequence[Tensor]
    """Where the keys and values of its new tokens go."""
    keys_1KSD: Sequence[Tensor]
    values_1KSD: Sequence[Tensor]
    mask_LS: Tensor | None
    """Added to scores: minus infinity where a token does not see another. None if the row has only
    one new token, which sees all, or no earlier ones."""


class Segment(NamedTuple):
    """Rows that follow each other and have the same adapter."""

    adapter: FusedAdapter | None
    rows: slice
    tokens: slice


class Batch:
    """Rows, sorted so that those with the same adapter follow each other."""

    def __init__(self, rows: Sequence[Row], shape: CacheShape) -> None:
        order = sorted(range(len(rows)), key=lambda index: id(rows[index].adapter))
        self.is_in_order = order == list(range(len(rows)))
        self.rows: list[RowInBatch] = []
        self.segments: list[Segment] = []
        self._caches: list[FusedCache] = []
        tokens: list[int] = []
        places: list[int] = []
        for row in (rows[index] for index in order):
            cache = cast("FusedCache", row.cache)
            start = len(tokens)
            tokens += row.tokens
            places += range(cache.length, cache.length + len(row.tokens))
            here = slice(start, len(tokens))
            self._add_to_segment(cast("FusedAdapter | None", row.adapter), here)
            self.rows.append(_place(cache, here))
            self._caches.append(cache)
        self.lengths = [row.length for row in self.rows]
        lasts = [row.tokens.stop - 1 for row in self.rows]
        self.tokens_T, self.places_T, self.last_B, self.places_of_rows_B = (
            torch.tensor(each, device=shape.device)
            for each in (tokens, places, lasts, sorted(range(len(rows)), key=order.__getitem__))
        )
        self.adapted = [
            (segment.adapter.layers, segment.tokens)
            for segment in self.segments
            if segment.adapter is not None
        ]

    def finish(self) -> None:
        """Note that the caches have the keys and values of the new tokens, in all layers."""
        for cache, row in zip(self._caches, self.rows, strict=True):
            cache.length += row.length

    def _add_to_segment(self, adapter: FusedAdapter | None, tokens: slice) -> None:
        rows = slice(len(self.rows), len(self.rows) + 1)
        if self.segments and self.segments[-1].adapter is adapter:
            last = self.segments.pop()
            rows, tokens = slice(last.rows.start, rows.stop), slice(last.tokens.start, tokens.stop)
        self.segments.append(Segment(adapter, rows, tokens))


def _place(cache: FusedCache, tokens: slice) -> RowInBatch:
    old, length = cache.length, tokens.stop - tokens.start
    cache.make_room(old + length)
    states_N2KSD = cache.states_N2KSD[:, :, :, : old + length]
    mask_LS = None
    if old and length > 1:
        full = states_N2KSD.new_full((length, old + length), -torch.inf)
        mask_LS = full.triu(old + 1)
    return RowInBatch(
        tokens,
        length,
        kept_2KLD=states_N2KSD[:, :, :, old:].unbind(),
        keys_1KSD=states_N2KSD[:, :1].unbind(),
        values_1KSD=states_N2KSD[:, 1:].unbind(),
        mask_LS=mask_LS,
    )
