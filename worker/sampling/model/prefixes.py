"""Keeps what was read of prompts, so that a prompt with the same beginning is not read again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from app.core.clock import steady_s
from worker.sampling.model.runner import Cache


class PrefixOwner(NamedTuple):
    """Whose prompts they are, and what has read them. Nothing is shared between two owners."""

    project_id: str
    base_model_sha256: str
    adapter_sha256: str | None
    in_pieces: bool = False
    """Whether they were read in pieces of a fixed size."""


class Known(NamedTuple):
    """The beginning of a prompt that was read before."""

    cache: Cache
    """What has read it, and perhaps more. Fork it to go on."""
    length: int
    """Number of tokens."""


@dataclass(eq=False, slots=True)  # arrays cannot be compared as a whole
class _Entry:
    owner: PrefixOwner
    tokens: np.ndarray
    cache: Cache
    used_s: float = field(default_factory=steady_s, init=False)


class PrefixStore:
    """Caches of prompts. The least recently used ones make room for new ones.

    Args:
        max_bytes: maximum memory of all caches together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: list[_Entry] = []
        """The most recently used one is the last."""

    @property
    def bytes(self) -> int:
        return sum(entry.cache.bytes for entry in self._entries)

    def find(self, owner: PrefixOwner, tokens: Sequence[int]) -> Known | None:
        """The longest known beginning of `tokens`.

        It is never all of them, because the last one must be read for what follows it.
        """
        wanted = np.array(list(tokens[:-1]))
        shared = [
            _common(entry.tokens, wanted) if entry.owner == owner else 0 for entry in self._entries
        ]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or not shared[best]:
            return None
        entry = self._entries.pop(best)
        self._entries.append(entry)
        entry.used_s = steady_s()
        return Known(entry.cache, shared[best])

    def keep(self, owner: PrefixOwner, tokens: Sequence[int], cache: Cache) -> None:
        """Keep a cache that has read `tokens`. The caller must not read with it any more."""
        new = np.array(list(tokens[: cache.length]))
        for entry in list(self._entries):
            if entry.owner != owner:
                continue
            shared = _common(entry.tokens, new)
            if shared == len(new):
                return  # what is there already says more
            if shared == len(entry.tokens):
                self._entries.remove(entry)
        if cache.bytes <= self.max_bytes:
            self._entries.append(_Entry(owner, new, cache))
            self.shrink(self.max_bytes)

    def shrink(self, max_bytes: int) -> None:
        """Drop the least recently used caches until the others take no more than `max_bytes`."""
        total = self.bytes
        while total > max_bytes and self._entries:
            total -= self._entries.pop(0).cache.bytes

    def drop_unused(self, since_s: float) -> None:
        """Drop the caches that were not used since this time of the steady clock."""
        while self._entries and self._entries[0].used_s < since_s:
            del self._entries[0]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Number of tokens at the beginning that both have."""
    length = min(len(a), len(b))
    differences = np.flatnonzero(a[:length] != b[:length])
    return int(differences[0]) if len(differences) else length
