"""Causal attention over rows that are laid end to end and may share their beginnings.

The rows are a trie of segments: each has a path, which are the tokens before it, and its own
tokens. Segments of like length form a group, whose attention is computed as batched products.

Dimension key:
    T  tokens, laid end to end
    N  tokens of a group, without padding
    G  segments of a group
    L  tokens of the longest of them
    P  tokens of the longest path
    S  P + L
    C  queries of a segment that are computed at once
    Q  query heads
    K  key and value heads
    D  width of a head
    E  G x K
    X  C x Q / K
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST_BY_PRODUCTS = 1024
"""Keys up to which the weights of attention are kept for the backward pass. For longer rows they
would be the largest tensors by far, and are computed twice."""

_QUERIES = 128
"""Queries of a segment that are computed at once. Keys after the last of them are left out, so that
nearly half of the table of a long row is not computed."""

_TABLE = 1 << 20
"""Weights of a segment and a head above which fewer queries are computed at once."""


@dataclass(frozen=True, slots=True)
class SharedPath:
    """Neighbours in a group that have the same path."""

    start: int
    end: int
    tokens_P: Tensor
    """Index of each token of the path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentGroup:
    """Segments of like length, as indices of their tokens. The index of padding is 0."""

    own_GL: Tensor
    """Tokens of each segment, padded at their end."""
    keys_GS: Tensor
    """Tokens of its path, padded at their beginning, then its own."""
    is_path_padding_GP: Tensor | None
    """Padding of the paths. None if there is none."""
    is_own_padding_GL: Tensor | None
    """Padding of the segments. None if there is none."""
    tokens_N: Tensor
    """Tokens of all segments."""
    slots_N: Tensor | None
    """Their places in the flattened `own_GL`. None if it has no padding."""
    paths: Sequence[SharedPath]

    @property
    def path_length(self) -> int:
        return self.keys_GS.shape[1] - self.own_GL.shape[1]

    @property
    def is_kept(self) -> bool:
        """Whether the weights of attention are kept for the backward pass."""
        return self.keys_GS.shape[1] <= LONGEST_BY_PRODUCTS

    def to(self, device: torch.device) -> "SegmentGroup":
        """Copy the tensors to a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        paths = [replace(path, tokens_P=path.tokens_P.to(device)) for path in self.paths]
        return replace(self, **moved, paths=paths)

    def chunks(self) -> Iterator[slice]:
        """Which queries are computed at once."""
        size = min(_QUERIES, max(1, _TABLE // self.keys_GS.shape[1]))
        length = self.own_GL.shape[1]
        for start in range(0, length, size):
            yield slice(start, min(start + size, length))


def attend(q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, groups: Sequence[SegmentGroup]) -> Tensor:
    """Attention of each token to itself, to those before it in its segment, and to its path.

    Args:
        q_TQD: queries. Q / K heads share a head of keys and values.
        k_TKD: keys.
        v_TKD: values.
        groups: all segments, so that every token is in one group.
    """
    return _Attention.apply(q_TQD, k_TKD, v_TKD, groups)  # pyright: ignore[reportGeneralTypeIssues]


class _Attention(torch.autograd.Function):
    """Softmax attention with its backward pass.

    Autograd would add up the gradients of shared tokens one token at a time, and keep more.

    Source:
        Dao et al. 2022 (arXiv:2205.14135), algorithm 4, for the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, groups: Sequence[SegmentGroup]
    ) -> Tensor:
        seen_TQD = torch.empty_like(q_TQD)
        kept: list[Tensor] = []
        for group in groups:
            k_ESD, v_ESD = _take_keys(k_TKD, group), _take_keys(v_TKD, group)
            parts: list[Tensor] = []
            for chunk in group.chunks():
                q_EXD = _take_queries(q_TQD, group, chunk, k_TKD.shape[1])
                weights_EXS = _weigh(q_EXD, k_ESD, group, chunk)
                seen_EXD = weights_EXS @ v_ESD[:, : weights_EXS.shape[-1]]
                parts.append(_split_queries(seen_EXD, group, chunk))
                if group.is_kept and any(ctx.needs_input_grad):
                    kept.append(weights_EXS)
            _put(seen_TQD, parts, group)
        ctx.groups = groups
        ctx.save_for_backward(q_TQD, k_TKD, v_TKD, *kept)
        return seen_TQD

    @staticmethod
    @once_differentiable  # its untyped wrapper hides the name `ctx`
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad_TQD,) = grad_outputs
        q_TQD, k_TKD, v_TKD, *kept = ctx.saved_tensors
        tables = iter(kept)
        kv_heads, scale = k_TKD.shape[1], q_TQD.shape[-1] ** -0.5
        dq_TQD, dk_TKD, dv_TKD = map(torch.empty_like, (q_TQD, k_TKD, v_TKD))
        of_paths: list[tuple[Tensor, Tensor, Tensor]] = []
        for group in ctx.groups:
            k_ESD, v_ESD = _take_keys(k_TKD, group), _take_keys(v_TKD, group)
            dk_ESD, dv_ESD = torch.zeros_like(k_ESD), torch.zeros_like(v_ESD)
            parts: list[Tensor] = []
            for chunk in group.chunks():
                q_EXD = _take_queries(q_TQD, group, chunk, kv_heads)
                weights_EXS = next(tables) if group.is_kept else _weigh(q_EXD, k_ESD, group, chunk)
                keys = slice(weights_EXS.shape[-1])
                grad_EXD = _take_queries(grad_TQD, group, chunk, kv_heads, padding=0.0)
                dv_ESD[:, keys].baddbmm_(weights_EXS.mT, grad_EXD)
                dweights_EXS = grad_EXD @ v_ESD[:, keys].mT
                dscores_EXS = torch.ops.aten._softmax_backward_data(  # noqa: SLF001 - autograd does
                    dweights_EXS, weights_EXS, -1, weights_EXS.dtype
                )
                dk_ESD[:, keys].baddbmm_(dscores_EXS.mT, q_EXD, alpha=scale)
                dq_EXD = torch.baddbmm(q_EXD, dscores_EXS, k_ESD[:, keys], beta=0, alpha=scale)
                parts.append(_split_queries(dq_EXD, group, chunk))
            _put(dq_TQD, parts, group)
            for grad_ESD, whole_TKD in ((dk_ESD, dk_TKD), (dv_ESD, dv_TKD)):
                grad_GSKD = grad_ESD.unflatten(0, (-1, kv_heads)).transpose(1, 2)
                grad_GPKD, own_GLKD = grad_GSKD.tensor_split([group.path_length], dim=1)
                _put(whole_TKD, [own_GLKD], group)
                for path in group.paths:
                    summed_PKD = grad_GPKD[path.start : path.end, -len(path.tokens_P) :].sum(0)
                    of_paths.append((whole_TKD, path.tokens_P, summed_PKD))
        # Only now, because the tokens of a path are those of another segment.
        for whole_TKD, tokens_P, summed_PKD in of_paths:
            whole_TKD[tokens_P] += summed_PKD
        return dq_TQD, dk_TKD, dv_TKD, None


def _take_keys(x_TKD: Tensor, group: SegmentGroup) -> Tensor:
    """Keys or values of each segment. Returns `x_ESD`."""
    x_GSKD = x_TKD.index_select(0, group.keys_GS.flatten()).unflatten(0, group.keys_GS.shape)
    return x_GSKD.transpose(1, 2).flatten(0, 1)


def _take_queries(
    x_TQD: Tensor, group: SegmentGroup, chunk: slice, kv_heads: int, *, padding: float | None = None
) -> Tensor:
    """What belongs to queries, with all heads that share keys as one matrix. Returns `x_EXD`.

    Args:
        x_TQD: queries, or gradients of what they see.
        group: the segments.
        chunk: which queries of each segment.
        kv_heads: number of key and value heads.
        padding: number in the place of padding. None if it may be anything.
    """
    own_GC = group.own_GL[:, chunk]
    x_GCQD = x_TQD.index_select(0, own_GC.flatten()).unflatten(0, own_GC.shape)
    if padding is not None and group.is_own_padding_GL is not None:
        x_GCQD.masked_fill_(group.is_own_padding_GL[:, chunk, None, None], padding)
    x_GCKMD = x_GCQD.unflatten(2, (kv_heads, -1))
    return x_GCKMD.permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)


def _split_queries(x_EXD: Tensor, group: SegmentGroup, chunk: slice) -> Tensor:
    """The opposite of `_take_queries`. Returns `x_GCQD`."""
    length = chunk.stop - chunk.start
    x_GKMCD = x_EXD.unflatten(1, (-1, length)).unflatten(0, (len(group.own_GL), -1))
    return x_GKMCD.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _put(x_TQD: Tensor, parts: Sequence[Tensor], group: SegmentGroup) -> None:
    """Write the tokens of all segments, less their padding, to their places."""
    x_GLQD = torch.cat(tuple(parts), dim=1) if len(parts) > 1 else parts[0]
    x_NQD = x_GLQD.flatten(0, 1)
    if group.slots_N is not None:
        x_NQD = x_NQD.index_select(0, group.slots_N)
    x_TQD.index_copy_(0, group.tokens_N, x_NQD)


def _weigh(q_EXD: Tensor, k_ESD: Tensor, group: SegmentGroup, chunk: slice) -> Tensor:
    """The weight of each key for each query, up to the last key that one of them sees."""
    length, path_length = chunk.stop - chunk.start, group.path_length
    k_ESD = k_ESD[:, : path_length + chunk.stop]
    scores_EXS = torch.baddbmm(
        q_EXD.new_empty(()), q_EXD, k_ESD.mT, beta=0, alpha=q_EXD.shape[-1] ** -0.5
    )
    scores_EMCS = scores_EXS.unflatten(1, (-1, length))
    later_CC = q_EXD.new_full((length, length), -torch.inf).triu(1)
    scores_EMCS[..., path_length + chunk.start :] += later_CC
    if group.is_path_padding_GP is not None:
        scores_GKXS = scores_EXS.unflatten(0, (len(group.own_GL), -1))
        scores_GKXS[..., :path_length].masked_fill_(
            group.is_path_padding_GP[:, None, None], -torch.inf
        )
    return torch.softmax(scores_EXS, dim=-1)  # computes in float32, whatever dtype it reads
