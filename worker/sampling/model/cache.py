"""Keys and values of what a sequence has read.

Dimension key:
    N  layers
    K  key and value heads
    S  tokens that there is room for
    D  width of a head
"""

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 128
"""Tokens by which the room for a sequence grows. Growing copies what is there, so small blocks cost
time, and large ones cost memory."""


class CacheShape(NamedTuple):
    layers: int
    heads: int
    """Key and value heads of a layer."""
    head_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.head_width * self.dtype.itemsize


class FusedCache:
    """Keys and values of one sequence, for all layers in one tensor that grows in place."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self.length = 0
        self.states_N2KSD = self._allocate(0)
        """For each layer the keys and then the values of the first `length` tokens. The rest is
        room."""

    @property
    def bytes(self) -> int:
        return self.states_N2KSD.nbytes

    def fork(self, length: int) -> "FusedCache":
        fork = FusedCache(self._shape)
        fork.make_room(length)
        fork.states_N2KSD[:, :, :, :length] = self.states_N2KSD[:, :, :, :length]
        fork.length = length
        return fork

    def make_room(self, tokens: int) -> None:
        """Make room for so many tokens in all."""
        room = self.states_N2KSD.shape[3]
        if tokens <= room:
            return
        states_N2KSD = self._allocate(-(-tokens // _BLOCK) * _BLOCK)
        states_N2KSD[:, :, :, : self.length] = self.states_N2KSD[:, :, :, : self.length]
        self.states_N2KSD = states_N2KSD

    def _allocate(self, room: int) -> Tensor:
        layers, heads, width, dtype, device = self._shape
        return torch.empty((layers, 2, heads, room, width), dtype=dtype, device=device)
