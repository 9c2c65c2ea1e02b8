"""Lays the rows of a micro-batch end to end, with what they share at their beginning only once.

Dimension key:
    B  rows
    L  tokens of the longest row
    C  queries of a block
    S  its keys
    H  its last keys, some of which are hidden from some queries
    T  tokens, laid end to end
    N  learned tokens of the rows
    U  different predictions among these
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worker.training.data.batching import MicroBatch, least_cut
from worker.training.data.beginnings import DrawnTokens, Segment, find_segments
from worker.training.model.attention import Block, Keys

_BLOCK_COST = 20_000
"""Fixed cost of a block, in numbers of a table of attention weights."""

_RUN = 128
"""Tokens of a segment that are in one block in any case."""

_MULTIPLE = 32
"""The number of keys is a multiple of it: softmax and products are up to twice as fast."""

_LARGEST_TABLE = 1 << 20
"""Most weights of a block and a head, if the block has more than one run."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The rows of a micro-batch, laid end to end."""

    input_ids_T: Tensor
    depths_T: Tensor
    """Position of each token in its rows, from 0."""
    blocks: Sequence[Block]
    places_U: Tensor
    """Indices of the tokens that predict, without repetitions of the same prediction."""
    targets_U: Tensor
    """What they predict."""
    pairs_N: Tensor
    """For each learned token, row after row, which of these predictions is its own."""
    drawn: Sequence[DrawnTokens]
    """Dropout masks of all tokens, in their order."""
    segments: Sequence[Segment]
    """All tokens, in their order."""
    places: Sequence[np.ndarray]
    """For each row, the index of each of its tokens."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "PackedRows":
        """Copy the tensors to a device, for a model of this dtype."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved, blocks=[block.to(device, dtype) for block in self.blocks])


def pack(batch: MicroBatch) -> PackedRows:
    """Lay the rows of a micro-batch end to end."""
    rows = batch.rows
    segments, places = find_segments(rows)
    is_learned_BL = batch.is_learned[:, 1:]
    learned = zip(places, batch.lengths, is_learned_BL.numpy(), strict=True)
    places_N = np.concatenate([row[:-1][is_[: length - 1]] for row, length, is_ in learned])
    targets_N = batch.labels_BL[:, 1:][is_learned_BL]
    (places_U, targets_U), pairs_N = torch.unique(
        torch.stack((torch.from_numpy(places_N), targets_N)), dim=1, return_inverse=True
    )
    return PackedRows(
        torch.from_numpy(np.concatenate([rows[one.row][one.start : one.end] for one in segments])),
        torch.from_numpy(np.concatenate([np.arange(one.start, one.end) for one in segments])),
        list(_find_blocks(segments)),
        places_U,
        targets_U,
        pairs_N,
        [drawn for one in segments for drawn in _find_drawn(one, batch)],
        segments,
        places,
    )


class _Run(NamedTuple):
    """Neighbouring tokens of a segment."""

    start: int
    """Index of the first, if all segments are laid end to end."""
    end: int
    path: np.ndarray
    """Index of each token before them in their rows."""


def _find_runs(segments: Sequence[Segment]) -> Iterator[_Run]:
    for one in segments:
        path_and_own = np.concatenate((one.path, one.tokens))
        for start in range(0, len(one.tokens), _RUN):
            end = min(start + _RUN, len(one.tokens))
            first = int(one.tokens[0])
            yield _Run(first + start, first + end, path_and_own[: len(one.path) + start])


def _find_blocks(segments: Sequence[Segment]) -> Iterator[Block]:
    """Blocks of neighbouring tokens, so that their attention takes the least time."""
    runs = list(_find_runs(segments))

    def costs(end: int) -> Iterator[int]:
        for start in reversed(range(end)):
            queries = runs[end - 1].end - runs[start].start
            table = queries * _padded(len(runs[start].path) + queries)
            if table > _LARGEST_TABLE and end - start > 1:
                return
            yield _BLOCK_COST + table

    for start, end in least_cut(len(runs), costs):
        yield _gather(runs[start:end])


def _padded(keys: int) -> int:
    return -(-keys // _MULTIPLE) * _MULTIPLE


def _gather(runs: Sequence[_Run]) -> Block:
    """A block of these runs.

    Segments are laid down in the order of a walk through the trie. So what is before the block and
    is seen by one of its tokens is on the path of its first token.
    """
    start, end = runs[0].start, runs[-1].end
    keys_S = np.concatenate((runs[0].path, np.arange(start, end)))
    is_hidden_CS = np.ones((end - start, _padded(len(keys_S))), np.bool_)
    for run in runs:
        queries = slice(run.start - start, run.end - start)
        is_hidden_CS[queries, np.searchsorted(keys_S, run.path)] = False
        own = slice(len(runs[0].path) + queries.start, len(runs[0].path) + queries.stop)
        is_hidden_CS[queries, own] = np.triu(is_hidden_CS[queries, own], 1)
    is_hidden_CH = is_hidden_CS[:, is_hidden_CS.any(axis=0).argmax() :]
    return Block(
        slice(start, end),
        list(_find_neighbours(keys_S)),
        is_hidden_CS.shape[1],
        torch.zeros(is_hidden_CH.shape).masked_fill_(torch.from_numpy(is_hidden_CH), -torch.inf),
    )


def _find_neighbours(keys_S: np.ndarray) -> Iterator[Keys]:
    bounds = [0, *(np.flatnonzero(np.diff(keys_S) != 1) + 1).tolist(), len(keys_S)]
    for start, end in pairwise(bounds):
        first = int(keys_S[start])
        yield Keys(slice(first, first + end - start), slice(start, end))


def _find_drawn(segment: Segment, batch: MicroBatch) -> Iterator[DrawnTokens]:
    """Which dropout masks the tokens of a segment have."""
    before = segment.start
    for stretch in batch.owners[segment.row]:
        end = min(stretch.end, segment.end)
        if end > before:
            first = int(segment.tokens[0]) + before - segment.start
            yield DrawnTokens(stretch.example, before - stretch.offset, first, first + end - before)
            before = end
