"""What an adapter adds to a linear layer, ready to be added.

Dimension key:
    T  tokens
    R  rank of the adapter, or of several
    I  inputs of a linear layer
    O  its outputs
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.sampling.model.adapter_files import LowRank


class _Part(NamedTuple):
    """The B matrix of one of the layers that were fused."""

    inner: slice
    outputs: slice
    B_RO: Tensor


class FusedLowRank(NamedTuple):
    """The adapter of linear layers that share their input and are computed as one.

    Its A matrices are one matrix, too.
    """

    A_IR: Tensor
    parts: Sequence[_Part]
    scale_O: Tensor | None
    """DoRA: factor of what the base model computes. None for plain LoRA."""
    shift_O: Tensor | None

    def add_to(self, y_TO: Tensor, x_TI: Tensor) -> None:
        """Change the outputs `y_TO` of the base model to those of the adapted one, in place."""
        if self.scale_O is not None:
            y_TO.mul_(self.scale_O)
        inner_TR = torch.mm(x_TI, self.A_IR)
        for part in self.parts:
            y_TO[:, part.outputs].addmm_(inner_TR[:, part.inner], part.B_RO)
        if self.shift_O is not None:
            y_TO.add_(self.shift_O)

    @property
    def bytes(self) -> int:
        tensors = (self.A_IR, self.scale_O, self.shift_O, *(part.B_RO for part in self.parts))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def fuse(
    weight_OI: Tensor, bias_O: Tensor | None, pieces: Sequence[tuple[slice, LowRank]]
) -> FusedLowRank:
    """Fuse the adapters of linear layers that are one layer of the base model.

    Args:
        weight_OI: weight of the fused layer of the base model.
        bias_O: its bias.
        pieces: outputs in the fused layer, and adapter, of each adapted layer.
    """
    dtype, device = weight_OI.dtype, weight_OI.device
    parts: list[_Part] = []
    scale_O, shift_O = torch.ones(len(weight_OI)), torch.zeros(len(weight_OI))
    start = 0
    for outputs, low_rank in pieces:
        gain_O = _gain(weight_OI[outputs], low_rank)
        scale_O[outputs] = gain_O
        # DoRA leaves the bias of the base model as it is, although it scales what it is added to.
        if bias_O is not None:
            shift_O[outputs] += bias_O[outputs].float().cpu() * (1 - gain_O)
        if low_rank.bias_O is not None:
            shift_O[outputs] += low_rank.bias_O.float() * low_rank.scale * gain_O
        B_RO = (low_rank.B_OR.float() * (low_rank.scale * gain_O)[:, None]).T.contiguous()
        stop = start + len(low_rank.A_RI)
        parts.append(_Part(slice(start, stop), outputs, B_RO.to(device, dtype)))
        start = stop
    A_IR = torch.cat([low_rank.A_RI for _, low_rank in pieces]).T.contiguous()
    return FusedLowRank(
        A_IR.to(device, dtype),
        parts,
        scale_O.to(device, dtype) if (scale_O != 1).any() else None,
        shift_O.to(device, dtype) if shift_O.any() else None,
    )


def _gain(weight_OI: Tensor, low_rank: LowRank) -> Tensor:
    """Factor of each output: the length that DoRA gives a row over the one that it has.

    Source:
        Liu et al. 2024, equation 5.
    """
    if low_rank.magnitude_O is None:
        return torch.ones(len(weight_OI))
    update_OI = low_rank.B_OR.float() @ low_rank.A_RI.float() * low_rank.scale
    lengths_O = torch.linalg.norm(weight_OI.float().cpu() + update_OI, dim=1)
    return low_rank.magnitude_O.float() / lengths_O
