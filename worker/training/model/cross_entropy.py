"""Chunked linear cross-entropy: log-probabilities of the learned tokens from hidden states.

The loss is their negative sum. They are computed from the hidden states of learned positions only,
a few hundred at a time: logits of a whole micro-batch would be the largest tensor of a step by far
(512 x 151,936 in float32 are 297 MiB, and as much again for their gradient).

Dimension key:
    B  examples in a micro-batch
    L  tokens in the longest of them
    N  learned tokens in the micro-batch
    C  learned tokens in a chunk
    R  learned tokens in a block
    H  width of the model
    V  vocabulary
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from worker.training.data.batching import MicroBatch

CHUNK = 256
"""Learned positions whose logits are in memory at once."""

_BLOCK = 16
"""Positions of a chunk that go through the softmax at once, in float32: so few that they stay in
the processor's cache from one operation to the next."""


@dataclass(frozen=True, slots=True)
class TargetLogProbs:
    """A model's predictions of the learned tokens of a micro-batch, row after row.

    `MicroBatch.rows_of_targets` has the row of each.
    """

    log_probs_N: Tensor
    """Natural logarithm of each token's probability, float32, differentiable."""
    is_top_N: Tensor
    """Whether no other token is more probable."""


def learned_targets(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """A mask of the positions that predict a learned token, and these tokens, row after row.

    Position t predicts token t + 1, so the last position predicts nothing.
    """
    is_learned_BL = batch.is_learned[:, 1:]
    return is_learned_BL, batch.labels_BL[:, 1:][is_learned_BL]


def linear_log_probs(hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor) -> TargetLogProbs:
    """Log-probabilities of targets, from the hidden states that predict them and the head.

    A head of another dtype is used in that of the hidden states. If it is trained, its gradient has
    its own dtype.

    Source:
        Hsu et al. 2024, "Liger Kernel" (arXiv:2410.10989), FusedLinearCrossEntropy: logits in
        chunks, and the gradient in the forward pass.
    """
    log_probs_N, is_top_N = _ChunkedLinear.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden_NH, head_VH, targets_N
    )
    return TargetLogProbs(log_probs_N, is_top_N)


def logits_log_probs(logits_NV: Tensor, targets_N: Tensor) -> TargetLogProbs:
    """Log-probabilities of targets, from the logits at the positions that predict them."""
    return TargetLogProbs(
        -F.cross_entropy(logits_NV, targets_N, reduction="none"),
        logits_NV.argmax(dim=-1) == targets_N,
    )


def _softmax_(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of targets and whether each is on top. Overwrites logits by softmax."""
    log_probs_C = torch.empty_like(targets_C, dtype=torch.float32)
    is_top_C = torch.empty_like(targets_C, dtype=torch.bool)
    for start in range(0, len(targets_C), _BLOCK):
        block = slice(start, start + _BLOCK)
        log_probs_RV = F.log_softmax(logits_CV[block], dim=-1, dtype=torch.float32)
        log_probs_R = log_probs_RV.gather(1, targets_C[block, None]).squeeze(1)
        log_probs_C[block] = log_probs_R
        is_top_C[block] = log_probs_R >= log_probs_RV.amax(dim=-1)
        logits_CV[block] = log_probs_RV.exp_()
    return log_probs_C, is_top_C


class _ChunkedLinear(torch.autograd.Function):
    """Log-probabilities from hidden states through the head, in chunks.

    The gradient of one token's log-probability with respect to its own hidden state is
    `head[target] - softmax @ head`. It is formed in the forward pass, while the logits are there,
    and only scaled in the backward pass, so no logits are kept and none are computed twice. Only
    the gradient of a trained head needs them again, because it sums over tokens what the backward
    pass scales.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_probs_N = torch.empty_like(targets_N, dtype=torch.float32)
        is_top_N = torch.empty_like(targets_N, dtype=torch.bool)
        needs_gradient, is_head_trained, _ = ctx.needs_input_grad
        weight_VH = head_VH.to(hidden_NH.dtype)
        gradient_NH = torch.empty_like(hidden_NH if needs_gradient else hidden_NH[:0])
        for start in range(0, len(targets_N), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits_CV = F.linear(hidden_NH[chunk], weight_VH)
            log_probs_N[chunk], is_top_N[chunk] = _softmax_(logits_CV, targets_N[chunk])
            if needs_gradient:
                softmax_CV = logits_CV  # `_softmax_` has overwritten it
                gradient_NH[chunk] = weight_VH[targets_N[chunk]] - softmax_CV @ weight_VH
        head = (hidden_NH, head_VH, targets_N) if is_head_trained else ()
        ctx.save_for_backward(gradient_NH, *head)
        ctx.mark_non_differentiable(is_top_N)
        return log_probs_N, is_top_N

    @staticmethod
    @once_differentiable  # its untyped wrapper hides the name `ctx`
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor | None, None]:
        grad_N, _ = grad_outputs
        gradient_NH, *head = ctx.saved_tensors
        head_gradient_VH = _gradient_of_head(grad_N, *head) if head else None
        return grad_N[:, None].to(gradient_NH.dtype) * gradient_NH, head_gradient_VH, None


def _gradient_of_head(
    grad_N: Tensor, hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor
) -> Tensor:
    weight_VH = head_VH.to(hidden_NH.dtype)
    gradient_VH = torch.zeros_like(head_VH)
    for start in range(0, len(targets_N), CHUNK):
        chunk = slice(start, start + CHUNK)
        grad_C, targets_C = grad_N[chunk], targets_N[chunk]
        logits_CV = F.linear(hidden_NH[chunk], weight_VH)
        _softmax_(logits_CV, targets_C)
        # The gradient of the log-probability of a target is 1 - softmax for it, else -softmax.
        grad_logits_CV = logits_CV.mul_(-grad_C[:, None])
        tokens_C = torch.arange(len(targets_C), device=targets_C.device)
        grad_logits_CV[tokens_C, targets_C] += grad_C
        gradient_VH += grad_logits_CV.mT @ hidden_NH[chunk]
    return gradient_VH
