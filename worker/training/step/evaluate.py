"""Evaluation on the validation file, and the adapter with the lowest validation loss."""

from dataclasses import dataclass, field

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from worker.training.data.batching import collate, cut_by_length
from worker.training.data.dataset import TokenizedData
from worker.training.model.base_model import trainable_parameters
from worker.training.model.forward import Forward


@dataclass(frozen=True, slots=True)
class Evaluation:
    loss: float
    """Mean negative log-likelihood, nats per learned token of the whole file."""
    accuracy: float


def evaluate(
    forward: Forward, data: TokenizedData, *, pad_token_id: int, micro_batch_tokens: int
) -> Evaluation:
    """Loss and accuracy over every learned token of a file, without dropout."""
    nll, top_tokens, learned_tokens = 0.0, 0, 0
    with torch.no_grad():
        everything = np.arange(len(data))
        for examples in cut_by_length(
            everything, data.lengths, micro_batch_tokens=micro_batch_tokens
        ):
            batch = collate(data, examples, pad_token_id=pad_token_id)
            predicted = forward.log_probs(batch, dropout=None)
            nll -= predicted.log_probs_N.double().sum().item()
            top_tokens += int(predicted.is_top_N.sum().item())
            learned_tokens += len(predicted.is_top_N)
    return Evaluation(nll / learned_tokens, top_tokens / learned_tokens)


@dataclass(slots=True, kw_only=True)
class BestAdapter:
    """Remembers the adapter with the lowest validation loss, for a job that may stop early."""

    patience: int
    step: int = 0
    """Step of the best adapter; 0 before the first evaluation."""
    loss: float = float("inf")
    weights: list[Tensor] = field(default_factory=list[Tensor])
    """A copy of the trainable parameters, in the order of the model."""
    failures: int = 0
    """Evaluations since the best one."""

    @property
    def is_final(self) -> bool:
        """Whether the patience is used up."""
        return self.failures >= self.patience

    def observe(self, step: int, loss: float, model: PeftModel) -> None:
        """Count an evaluation, and copy the adapter if it is the best so far."""
        if loss >= self.loss:
            self.failures += 1
            return
        self.failures = 0
        self.loss, self.step = loss, step
        self.weights = [weights.detach().clone() for weights in trainable_parameters(model)]

    def restore(self, model: PeftModel) -> None:
        with torch.no_grad():
            for weights, best in zip(trainable_parameters(model), self.weights, strict=True):
                weights.copy_(best)
