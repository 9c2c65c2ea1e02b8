"""One optimizer step, one evaluation, and the adapter with the lowest validation loss."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from app.core.job.training_config import TrainingConfig
from worker.training.data.batching import MicroBatch
from worker.training.model.base_model import trainable_parameters
from worker.training.model.forward import Forward
from worker.training.model.randomness import DropoutKey


@dataclass(frozen=True, slots=True)
class StepResult:
    loss: float
    """Mean negative log-likelihood, nats per learned token."""
    accuracy: float
    """Fraction of learned tokens that the model, before the step, ranked first."""
    grad_norm: float
    """L2 norm of the adapter's gradient, before clipping."""


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or not a number. No step was taken."""


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW for the trainable parameters. A group's `lr_ratio` is a factor on the learning rate."""
    return torch.optim.AdamW(
        _parameter_groups(model, config),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """All parameters in one group, or in two: the matrices A, and what learns faster.

    As in peft, the vectors of DoRA learn as the matrices B do.

    Source:
        Hayou et al. 2024 (arXiv:2402.12354).
    """
    ratio = config.loraplus_lr_ratio
    if ratio is None:
        return [{"params": list(trainable_parameters(model)), "lr_ratio": 1.0}]
    slow: list[nn.Parameter] = []
    fast: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (fast if "lora_B" in name or parameter.ndim == 1 else slow).append(parameter)
    return [
        {"params": slow, "lr_ratio": 1.0},
        {"params": fast, "lr_ratio": ratio, "lr": config.learning_rate * ratio},
    ]


def train_step(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    dropout: DropoutKey,
    max_grad_norm: float,
) -> StepResult:
    """Take one optimizer step over a batch that comes in pieces.

    The loss is summed over learned tokens and divided once, by their number in the whole batch,
    so the step is the same however the batch is cut. (Averaging each piece's mean gives short
    answers too much weight.)

    Args:
        forward: runs a model whose only trainable parameters are the adapter's.
        optimizer: updates those parameters. Their gradients are zero on entry and on exit.
        micro_batches: the batch, in pieces that fit in memory.
        dropout: names the dropout masks.
        max_grad_norm: L2 norm above which the gradient is scaled down.

    Raises:
        ValueError: not one token in the batch is learned.
        NotFiniteError: the loss or its gradient is not a finite number.
    """
    learned_tokens = sum(len(piece.rows_of_targets) for piece in micro_batches)
    if learned_tokens == 0:
        raise ValueError("No token in this batch is learned.")

    losses: list[Tensor] = []
    top_tokens: list[Tensor] = []
    for piece in micro_batches:
        predicted = forward.log_probs(piece, dropout)
        loss = -predicted.log_probs_N.sum() / learned_tokens
        loss.backward()  # frees this piece's activations before the next forward
        losses.append(loss.detach())
        top_tokens.append(predicted.is_top_N.sum())

    total_loss = torch.stack(losses).sum().item()
    grad_norm = nn.utils.clip_grad_norm_(trainable_parameters(forward.model), max_grad_norm).item()
    if not math.isfinite(total_loss) or not math.isfinite(grad_norm):
        raise NotFiniteError(f"loss {total_loss}, gradient norm {grad_norm}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    accuracy = torch.stack(top_tokens).sum().item() / learned_tokens
    return StepResult(total_loss, accuracy, grad_norm)


@dataclass(frozen=True, slots=True)
class Evaluation:
    loss: float
    """Mean negative log-likelihood, nats per learned token of the whole file."""
    accuracy: float


def evaluate(forward: Forward, micro_batches: Iterable[MicroBatch]) -> Evaluation:
    """Loss and accuracy over every learned token of a file, without dropout."""
    nll, top_tokens, learned_tokens = 0.0, 0, 0
    with torch.no_grad():
        for batch in micro_batches:
            predicted = forward.log_probs(batch, dropout=None)
            nll -= predicted.log_probs_N.double().sum().item()
            top_tokens += int(predicted.is_top_N.sum().item())
            learned_tokens += len(predicted.is_top_N)
    return Evaluation(nll / learned_tokens, top_tokens / learned_tokens)


@dataclass(slots=True, kw_only=True)
class BestAdapter:
    """Remembers the adapter with the lowest validation loss, and knows when to stop early."""

    patience: int | None
    """Number of evaluations without a gain after which the job stops; None to train to the end."""
    threshold: float = 0.0
    """Decrease of the lowest validation loss that is just no gain. As in transformers, a smaller
    one still makes an adapter the best."""
    step: int = 0
    """Step of the best adapter; 0 before the first evaluation."""
    loss: float = float("inf")
    weights: list[Tensor] = field(default_factory=list[Tensor])
    """A copy of the trainable parameters, in the order of the model."""
    failures: int = 0
    """Evaluations since the last gain."""

    @classmethod
    def for_job(cls, config: TrainingConfig) -> "BestAdapter | None":
        """None if neither the end of the job nor its result depends on the best adapter."""
        patience = config.early_stopping_patience
        if patience is None and not config.chooses_best:
            return None
        return cls(patience=patience, threshold=config.early_stopping_threshold)

    @property
    def is_final(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.failures >= self.patience

    def observe(self, step: int, loss: float, model: PeftModel) -> None:
        """Count an evaluation, and copy the adapter if it is the best so far."""
        self.failures = 0 if self.loss - loss > self.threshold else self.failures + 1
        if loss >= self.loss:
            return
        self.loss, self.step = loss, step
        self.weights = [weights.detach().clone() for weights in trainable_parameters(model)]

    def restore(self, model: PeftModel) -> None:
        with torch.no_grad():
            for weights, best in zip(trainable_parameters(model), self.weights, strict=True):
                weights.copy_(best)
