"""Lays the rows of a micro-batch end to end, with what they share at their beginning only once.

Dimension key:
    B  rows
    L  tokens of the longest row, or of the longest segment of a group
    G  segments of a group
    P  tokens of the longest path to one of them
    S  P + L
    T  tokens, laid end to end
    N  learned tokens of the rows
    U  different predictions among these
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.training.data.batching import MicroBatch, least_cut
from worker.training.data.beginnings import DrawnTokens, Segment, find_segments
from worker.training.model.attention import SegmentGroup, SharedPath

_GROUP_COST = 8192
"""Fixed cost of a group of segments, in numbers of a table of attention weights."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The rows of a micro-batch, laid end to end."""

    input_ids_T: Tensor
    depths_T: Tensor
    """Position of each token in its rows, from 0."""
    groups: Sequence[SegmentGroup]
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

    def to(self, device: torch.device) -> "PackedRows":
        """Copy the tensors to a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved, groups=[group.to(device) for group in self.groups])


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
        [_gather(group) for group in _group_segments(segments)],
        places_U,
        targets_U,
        pairs_N,
        [drawn for one in segments for drawn in _find_drawn(one, batch)],
        segments,
        places,
    )


def _group_segments(segments: Sequence[Segment]) -> Iterator[Sequence[Segment]]:
    """Group segments of like length, so that their attention takes the least time."""
    by_size = sorted(segments, key=lambda one: one.size)

    def costs(end: int) -> Iterator[int]:
        own, path = 0, 0
        for start in reversed(range(end)):
            own, path = max(own, by_size[start].size[0]), max(path, by_size[start].size[1])
            yield _GROUP_COST + (end - start) * own * (path + own)

    for start, end in least_cut(len(by_size), costs):
        yield by_size[start:end]


def _gather(segments: Sequence[Segment]) -> SegmentGroup:
    """The indices of a group."""
    own, path = (max(sizes) for sizes in zip(*(one.size for one in segments), strict=True))
    keys_GS = np.zeros((len(segments), path + own), np.int64)
    is_padding_GS = np.ones(keys_GS.shape, np.bool_)
    for index, one in enumerate(segments):
        places = slice(path - len(one.path), path + len(one.tokens))
        keys_GS[index, places] = np.concatenate((one.path, one.tokens))
        is_padding_GS[index, places] = False
    is_path_padding_GP, is_own_padding_GL = (
        torch.from_numpy(part) if part.any() else None
        for part in np.split(is_padding_GS, [path], axis=1)
    )
    slots_N = np.flatnonzero(~is_padding_GS[:, path:])
    own_GL = keys_GS[:, path:]
    return SegmentGroup(
        own_GL=torch.from_numpy(np.ascontiguousarray(own_GL)),
        keys_GS=torch.from_numpy(keys_GS),
        is_path_padding_GP=is_path_padding_GP,
        is_own_padding_GL=is_own_padding_GL,
        tokens_N=torch.from_numpy(own_GL.flatten()[slots_N]),
        slots_N=None if is_own_padding_GL is None else torch.from_numpy(slots_N),
        paths=list(_find_paths(segments)),
    )


def _find_paths(segments: Sequence[Segment]) -> Iterator[SharedPath]:
    start = 0
    for tokens, sharing in groupby(segments, key=lambda one: one.path.tobytes()):
        end = start + len(list(sharing))
        if tokens:
            yield SharedPath(start, end, torch.from_numpy(segments[start].path))
        start = end


def _find_drawn(segment: Segment, batch: MicroBatch) -> Iterator[DrawnTokens]:
    """Which dropout masks the tokens of a segment have."""
    before = segment.start
    for stretch in batch.owners[segment.row]:
        end = min(stretch.end, segment.end)
        if end > before:
            first = int(segment.tokens[0]) + before - segment.start
            yield DrawnTokens(stretch.example, before - stretch.offset, first, first + end - before)
            before = end
