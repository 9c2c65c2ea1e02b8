"""Which examples form a step, and how a step is cut into micro-batches that fit in memory.

The shuffle alone decides which examples share an optimizer step. Micro-batches group them by
length, and the result of a step does not depend on the grouping.

Dimension key (Shazeer 2024, "Shape Suffixes"):
    B  examples in a micro-batch
    L  tokens in the longest of them
    N  learned tokens in the micro-batch
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np
import torch
from torch import Tensor

from worker.training.data.dataset import IGNORE_INDEX, TokenizedData

GROUP_COST = 64
"""Fixed cost of a micro-batch, in tokens: each one reads all weights."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows side by side, the shorter ones padded at their end.

    There is no attention mask: a causal model's token never sees what comes after it, so padding
    at the end cannot influence a token that is learned.
    """

    input_ids_BL: Tensor
    labels_BL: Tensor
    examples: Sequence[int]
    """Index of each row in the data."""
    lengths: Sequence[int]
    """Tokens of each row, without its padding."""

    @property
    def is_learned(self) -> Tensor:
        """Whether a token is learned. The first of a row never is: nothing predicts it."""
        is_learned_BL = self.labels_BL != IGNORE_INDEX
        is_learned_BL[:, 0] = False
        return is_learned_BL

    @property
    def rows_of_targets(self) -> Tensor:
        """For each learned token, row after row, the position of its row in `examples`."""
        return self.is_learned.nonzero()[:, 0]

    def to(self, device: torch.device) -> "MicroBatch":
        """Copy the tensors to a device."""
        return replace(
            self, input_ids_BL=self.input_ids_BL.to(device), labels_BL=self.labels_BL.to(device)
        )


def shuffled_batches(
    examples: int, batch_size: int, *, seed: int, after_step: int = 0
) -> Iterator[np.ndarray]:
    """The examples of each optimizer step, epoch after epoch, without end.

    Each epoch has its own order. Its last step has the examples that are left over.

    Args:
        examples: number of examples in the file.
        batch_size: examples of a step.
        seed: seed of the job.
        after_step: number of steps that are already taken, whose examples are skipped.
    """
    first_epoch, skipped = divmod(after_step, math.ceil(examples / batch_size))
    for epoch in count(first_epoch):
        order = np.random.default_rng([seed, epoch]).permutation(examples)
        for start in range(skipped * batch_size, examples, batch_size):
            yield order[start : start + batch_size]
        skipped = 0


def cut_by_length(
    indices: np.ndarray, lengths: np.ndarray, *, micro_batch_tokens: int
) -> Iterator[np.ndarray]:
    """Cut a step into micro-batches of similar lengths, so that it takes the least time.

    Args:
        indices: the examples of the step.
        lengths: tokens of each example of the file.
        micro_batch_tokens: most tokens of a micro-batch, padding included. A longer example is
            alone.
    """
    by_length = indices[np.argsort(lengths[indices], kind="stable")]
    rows = lengths[by_length].tolist()
    # For the first n rows: their least cost, and where their last group starts.
    least = [0.0]
    starts = [0]
    for end, longest in enumerate(rows, 1):
        fits = max(1, micro_batch_tokens // longest)
        candidates = (
            (least[start] + GROUP_COST + (end - start) * longest, start)
            for start in range(max(0, end - fits), end)
        )
        cost, start = min(candidates)
        least.append(cost)
        starts.append(start)
    bounds = [len(rows)]
    while bounds[-1] > 0:
        bounds.append(starts[bounds[-1]])
    for end, start in pairwise(bounds):
        yield by_length[start:end]


def collate(data: TokenizedData, examples: np.ndarray, *, pad_token_id: int) -> MicroBatch:
    """Read examples, and pad them at their end to the length of the longest.

    The padding can be any token, because it is not learned and no learned token sees it.
    """
    rows = [data.read(example) for example in examples]
    shape = (len(rows), max(len(row.input_ids) for row in rows))
    input_ids_BL = np.full(shape, pad_token_id, dtype=np.int64)
    labels_BL = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    for i, row in enumerate(rows):
        input_ids_BL[i, : len(row.input_ids)] = row.input_ids
        labels_BL[i, : len(row.labels)] = row.labels
    return MicroBatch(
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(labels_BL),
        examples.tolist(),
        [len(row.input_ids) for row in rows],
    )
