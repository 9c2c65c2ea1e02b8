"""Rows that begin alike: their order, what they share, and which row a shared token counts as."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MIN_SHARED = 16
"""Tokens that rows must have in common to share them. For fewer, their own attention costs more."""


@dataclass(frozen=True, slots=True)
class SortedRows:
    """Rows in the order of their tokens, so that rows that begin alike are neighbours."""

    order: list[int]
    """Position of each sorted row among the rows as they were given."""
    shared: list[int]
    """Tokens that each sorted row has in common with the one before; 0 for the first. Two rows have
    in common the least of these numbers from after the one up to the other."""

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> "SortedRows":
        keys = [row.astype(">u4").tobytes() for row in rows]
        order = sorted(range(len(rows)), key=keys.__getitem__)
        before = [np.empty(0), *(rows[i] for i in order)]
        shared = [_count_shared(one, rows[i]) for one, i in zip(before, order, strict=False)]
        return cls(order, shared)


def _count_shared(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that the same rows have in common."""

    row: int
    """One of its rows."""
    start: int
    """Tokens of the row before the segment."""
    end: int
    path: np.ndarray
    """Index of each token before the segment, if all segments are laid end to end."""
    tokens: np.ndarray
    """Index of each of its own tokens."""

    @property
    def size(self) -> tuple[int, int]:
        """Tokens of its own, and of its path."""
        return len(self.tokens), len(self.path)


def find_segments(rows: Sequence[np.ndarray]) -> tuple[list[Segment], list[np.ndarray]]:
    """Find what rows have in common at their beginnings, as a trie.

    Returns:
        The segments, to be laid end to end, and for each row the index of each of its tokens there.
    """
    ordered = SortedRows.of(rows)
    segments: list[Segment] = []
    places = [np.empty(0, np.int64)] * len(rows)
    count = 0
    # Neighbours in the order that have not been laid down yet, and the path that they share.
    waiting = [(0, len(rows), np.empty(0, np.int64))]
    while waiting:
        start, end, path = waiting.pop()
        row = ordered.order[start]
        common = min(ordered.shared[start + 1 : end], default=len(rows[row]))
        if end - start == 1 or common - len(path) >= MIN_SHARED:
            tokens = np.arange(count, count + common - len(path))
            if len(tokens):
                segments.append(Segment(row, len(path), common, path, tokens))
                count += len(tokens)
            path = np.concatenate((path, tokens))
            for sorted_row in range(start, end):
                places[ordered.order[sorted_row]] = path
        if end - start > 1:
            bounds = [i for i in range(start + 1, end) if ordered.shared[i] == common]
            parts = pairwise([start, *bounds, end])
            waiting += [(*part, path) for part in reversed(list(parts))]
    return segments, places


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens of a row that count as those of one example, for which dropout masks are drawn."""

    end: int
    """Tokens of the row up to the end of the stretch."""
    example: int
    """Index of the example in the data."""
    offset: int
    """Tokens of that example that count as those of others. They are at its beginning."""


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """Neighbouring tokens whose dropout masks are those of one example."""

    example: int
    offset: int
    """Masks of the example that come before."""
    start: int
    """Index of the first token."""
    end: int


def find_owners(rows: Sequence[np.ndarray], examples: Sequence[int]) -> list[list[Stretch]]:
    """For each row of a step, which example each of its tokens counts as.

    A token that several rows share, with all tokens before it, counts as that of the first of these
    rows in the order of their tokens. So it depends neither on micro-batches nor on what is really
    computed only once.
    """
    ordered = SortedRows.of(rows)
    owners: list[list[Stretch]] = [[] for _ in rows]
    stretches: list[Stretch] = []
    for row, shared in zip(ordered.order, ordered.shared, strict=True):
        kept: list[Stretch] = []
        for stretch in stretches:
            if kept and kept[-1].end >= shared:
                break
            kept.append(Stretch(min(stretch.end, shared), stretch.example, stretch.offset))
        stretches = [one for one in kept if one.end > 0]
        if len(rows[row]) > shared:
            stretches.append(Stretch(len(rows[row]), examples[row], shared))
        owners[row] = stretches
    return owners
