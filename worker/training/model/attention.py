"""Causal attention over rows that are laid end to end and may share their beginnings.

The tokens are cut into blocks. The queries of a block are neighbours. Its keys are those of all
that one of its queries sees, and a bias hides from each query what it must not see.

Dimension key:
    T  tokens, laid end to end
    C  queries of a block
    S  its keys, with padding
    H  its last keys, some of which are hidden from some queries
    Q  query heads
    K  key and value heads
    D  width of a head
    X  C x Q / K
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST_BY_PRODUCTS = 1024
"""Keys of a block up to which its weights of attention are kept for the backward pass. For longer
rows they would be the largest tensors by far, and are computed twice."""


class Keys(NamedTuple):
    """Neighbouring tokens, and where they are among the keys of a block."""

    tokens: slice
    keys: slice


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that are computed at once."""

    queries: slice
    """The tokens that ask."""
    keys: Sequence[Keys]
    """The tokens that one of them sees."""
    length: int
    """Number of keys, with padding at their end."""
    bias_CH: Tensor
    """Minus infinity for each of the last keys that a query does not see, and otherwise 0."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Block":
        """Copy the bias to a device, in the dtype of queries and keys."""
        return Block(self.queries, self.keys, self.length, self.bias_CH.to(device, dtype))

    @property
    def is_kept(self) -> bool:
        """Whether the weights of attention are kept for the backward pass."""
        return self.length <= LONGEST_BY_PRODUCTS


def attend(q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Attention of each token to those that it sees.

    Args:
        q_TQD: queries. Q / K heads share a head of keys and values.
        k_TKD: keys.
        v_TKD: values.
        blocks: all tokens, so that each is a query of one block.
    """
    return _Attention.apply(q_TQD, k_TKD, v_TKD, blocks)  # pyright: ignore[reportGeneralTypeIssues]


class _Attention(torch.autograd.Function):
    """Softmax attention with its backward pass.

    Autograd would add up the gradients of shared tokens in the dtype of the model, and keep more.

    Source:
        Dao et al. 2022 (arXiv:2205.14135), algorithm 4, for the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, blocks: Sequence[Block]
    ) -> Tensor:
        seen_TQD = torch.empty_like(q_TQD)
        kept: list[Tensor] = []
        for block in blocks:
            q_KXD = _take_queries(q_TQD, block, k_TKD.shape[1])
            weights_KXS = _weigh(q_KXD, _take_keys(k_TKD, block), block)
            _put_queries(seen_TQD, weights_KXS @ _take_keys(v_TKD, block), block)
            if block.is_kept and any(ctx.needs_input_grad):
                kept.append(weights_KXS)
        ctx.blocks = blocks
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
        dq_TQD = torch.empty_like(q_TQD)
        # A key is seen from several blocks, and a shared one from many.
        dk_TKD, dv_TKD = (torch.zeros_like(x, dtype=torch.float32) for x in (k_TKD, v_TKD))
        for block in ctx.blocks:
            q_KXD = _take_queries(q_TQD, block, kv_heads)
            k_KSD, v_KSD = _take_keys(k_TKD, block), _take_keys(v_TKD, block)
            weights_KXS = next(tables) if block.is_kept else _weigh(q_KXD, k_KSD, block)
            grad_KXD = _take_queries(grad_TQD, block, kv_heads)
            _add_keys(dv_TKD, weights_KXS.mT @ grad_KXD, block)
            dscores_KXS = torch.ops.aten._softmax_backward_data(  # noqa: SLF001 - autograd does
                grad_KXD @ v_KSD.mT, weights_KXS, -1, weights_KXS.dtype
            )
            _add_keys(dk_TKD, _scaled_product(dscores_KXS.mT, q_KXD, scale), block)
            _put_queries(dq_TQD, _scaled_product(dscores_KXS, k_KSD, scale), block)
        return dq_TQD, dk_TKD.to(k_TKD.dtype), dv_TKD.to(v_TKD.dtype), None


def _take_queries(x_TQD: Tensor, block: Block, kv_heads: int) -> Tensor:
    """What belongs to queries, with all heads that share keys as one matrix. Returns `x_KXD`."""
    x_CKMD = x_TQD[block.queries].unflatten(1, (kv_heads, -1))
    return x_CKMD.permute(1, 2, 0, 3).flatten(1, 2)


def _put_queries(x_TQD: Tensor, x_KXD: Tensor, block: Block) -> None:
    """The opposite of `_take_queries`."""
    x_CKMD = x_TQD[block.queries].unflatten(1, (len(x_KXD), -1))
    x_CKMD.copy_(x_KXD.unflatten(1, (-1, len(x_CKMD))).permute(2, 0, 1, 3))


def _take_keys(x_TKD: Tensor, block: Block) -> Tensor:
    """Keys or values of a block. Returns `x_KSD`."""
    x_KSD = x_TKD.new_empty(x_TKD.shape[1], block.length, x_TKD.shape[2])
    for tokens, keys in block.keys:
        x_KSD[:, keys] = x_TKD[tokens].transpose(0, 1)
    x_KSD[:, block.keys[-1].keys.stop :] = 0
    return x_KSD


def _add_keys(sum_TKD: Tensor, x_KSD: Tensor, block: Block) -> None:
    """The opposite of `_take_keys`, but adds."""
    for tokens, keys in block.keys:
        sum_TKD[tokens] += x_KSD[:, keys].transpose(0, 1)


def _weigh(q_KXD: Tensor, k_KSD: Tensor, block: Block) -> Tensor:
    """The weight of each key for each query. Returns `weights_KXS`."""
    scores_KXS = _scaled_product(q_KXD, k_KSD.mT, q_KXD.shape[-1] ** -0.5)
    queries, hidden = block.bias_CH.shape
    scores_KXS.unflatten(1, (-1, queries))[..., -hidden:] += block.bias_CH
    return torch.softmax(scores_KXS, dim=-1)  # computes in float32, whatever dtype it reads


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale)
