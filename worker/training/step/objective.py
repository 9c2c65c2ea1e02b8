"""What is minimised: the loss of supervised or of preference tuning, from a model's predictions.

Dimension key:
    B  rows of a micro-batch
    L  tokens in the longest of them
    N  learned tokens in the micro-batch
    R  rows of a dataset
    P  pairs in the micro-batch
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from app.core.job.training_config import DpoSettings
from worker.training.data.batching import MicroBatch
from worker.training.model.cross_entropy import TargetLogProbs
from worker.training.model.forward import Forward

References = dict[str, Tensor]
"""For the digest of a dataset, the log-probability of each of its answers by a reference."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over a micro-batch. Divided by what `Objective.count` says, they are means."""

    loss: Tensor
    """Sum of the losses, in nats, differentiable."""
    top_tokens: Tensor
    """Number of tokens that the model ranked first, of those whose accuracy is measured."""
    rewards: Tensor | None = None
    """Sums over pairs: reward of the preferred answer, reward of the other, and whether the first
    is larger. None for supervised tuning."""


class Objective(Protocol):
    """A loss that is a mean over units. The micro-batches of a step are measured one by one."""

    def count(self, batch: MicroBatch) -> tuple[int, int]:
        """Number of units in a micro-batch, and number of tokens whose accuracy is measured."""
        ...

    def measure(self, batch: MicroBatch, predicted: TargetLogProbs) -> Measured: ...


class NextTokens:
    """Supervised tuning: the negative log-likelihood of learned tokens. The units are tokens."""

    def count(self, batch: MicroBatch) -> tuple[int, int]:
        learned = sum(learned_by_row(batch))
        return learned, learned

    def measure(self, batch: MicroBatch, predicted: TargetLogProbs) -> Measured:
        del batch
        return Measured(-predicted.log_probs_N.sum(), predicted.is_top_N.sum())


class Preferences:
    """Direct preference optimization. The units are pairs: two rows, the preferred answer first.

    The reward of an answer is beta times the logarithm of how much more probable the model makes it
    than the reference does, and the loss of a pair is `-log sigmoid(difference of the rewards)`.
    With label smoothing it is the expectation of that loss if pairs are the wrong way round with
    this probability.

    Source:
        Rafailov et al. 2023 (arXiv:2305.18290), equation 7. Label smoothing: Mitchell 2023, "A note
        on DPO with noisy preferences". Mean over tokens: Lambert et al. 2024 (arXiv:2411.15124);
        without a reference, Meng et al. 2024 (arXiv:2405.14734).
    """

    def __init__(self, settings: DpoSettings, reference_R: Tensor | None) -> None:
        """Set what a pair is compared with.

        Args:
            settings: of the job.
            reference_R: log-probability of each answer of the dataset by the reference. None for a
                reference that gives all answers the same.
        """
        self._settings = settings
        self._reference_R = reference_R

    def count(self, batch: MicroBatch) -> tuple[int, int]:
        learned = learned_by_row(batch)
        return len(learned) // 2, sum(learned[::2])

    def measure(self, batch: MicroBatch, predicted: TargetLogProbs) -> Measured:
        settings, learned = self._settings, learned_by_row(batch)
        rewards_B = sum_by_row(batch, predicted.log_probs_N)
        if self._reference_R is not None:
            rewards_B = rewards_B - self._reference_R[list(batch.examples)].to(rewards_B)
        if settings.length_normalized:
            rewards_B = rewards_B / torch.tensor(learned).to(rewards_B)
        rewards_B = settings.beta * rewards_B
        chosen_P, rejected_P = rewards_B[::2], rewards_B[1::2]
        margin_P = chosen_P - rejected_P
        doubt = settings.label_smoothing
        loss_P = -(1 - doubt) * F.logsigmoid(margin_P) - doubt * F.logsigmoid(-margin_P)
        sums = [chosen_P.sum(), rejected_P.sum(), (margin_P > 0).sum()]
        top_tokens = [part.sum() for part in predicted.is_top_N.split(learned)[::2]]
        return Measured(
            loss_P.sum(), torch.stack(top_tokens).sum(), torch.stack(sums).detach().double()
        )


def learned_by_row(batch: MicroBatch) -> list[int]:
    """Learned tokens of each row."""
    return torch.bincount(batch.rows_of_targets, minlength=len(batch.examples)).tolist()


def sum_by_row(batch: MicroBatch, log_probs_N: Tensor) -> Tensor:
    """Log-probability of the learned tokens of each row together."""
    parts = log_probs_N.split(learned_by_row(batch))
    return torch.stack([part.sum() for part in parts])


def score_rows(forward: Forward, batches: Iterable[MicroBatch], *, rows: int) -> Tensor:
    """Log-probability of the answer of each row of a dataset, float32, without dropout.

    Args:
        forward: runs the model.
        batches: all rows of the dataset.
        rows: their number.
    """
    log_probs_R = torch.empty(rows)
    with torch.no_grad():
        for batch in batches:
            predicted = forward.log_probs(batch, dropout=None)
            sums_B = sum_by_row(batch, predicted.log_probs_N.double())
            log_probs_R[list(batch.examples)] = sums_B.float().cpu()
    return log_probs_R
