"""Which examples form a step, and how a step is cut into micro-batches that fit in memory.

The shuffle alone decides which examples share an optimizer step. Micro-batches group them by
length, and the result of a step does not depend on the grouping.

Dimension key (Shazeer 2024, "Shape Suffixes"):
    B  examples in a micro-batch
    L  tokens in the longest of them
    N  learned tokens in the micro-batch
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np
import torch
from torch import Tensor

from worker.training.data.beginnings import (
    MIN_SHARED,
    SortedRows,
    Stretch,
    find_owners,
    find_segments,
)
from worker.training.data.dataset import IGNORE_INDEX, TokenizedData, TokenizedRow

GROUP_COST = 64
"""Fixed cost of a micro-batch, in tokens: each one reads all weights."""

_EVALUATED_TOGETHER = 128
"""Examples of an evaluation among which micro-batches look for those that begin alike."""


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
    owners: Sequence[Sequence[Stretch]]
    """For each row, which examples its tokens count as, for dropout."""
    computed_tokens: int
    """Tokens that a forward pass computes: shared ones once, or all with their padding."""
    dataset: str = ""
    """Digest of the data."""

    @property
    def rows(self) -> list[np.ndarray]:
        """The tokens of each row, without its padding."""
        ids_BL = self.input_ids_BL.numpy()
        return [ids_L[:length] for ids_L, length in zip(ids_BL, self.lengths, strict=True)]

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


def least_cut(count: int, costs: Callable[[int], Iterator[float]]) -> list[tuple[int, int]]:
    """Cut a sequence into parts that cost the least together.

    Args:
        count: its length.
        costs: called with an end, returns the costs of parts that end there: of the last one alone,
            of the last two, and so on to the largest part that there may be.

    Returns:
        Start and end of each part.
    """
    # For the first n: their least cost, and where their last part starts.
    least = [0.0]
    starts = [0]
    for end in range(1, count + 1):
        candidates = zip(costs(end), range(end - 1, -1, -1), strict=False)
        cost, start = min((least[start] + cost, start) for cost, start in candidates)
        least.append(cost)
        starts.append(start)
    bounds = [count]
    while bounds[-1] > 0:
        bounds.append(starts[bounds[-1]])
    return [(start, end) for start, end in pairwise(reversed(bounds))]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a step that are one micro-batch."""

    rows: list[int]
    """Their indices."""
    tokens: int
    """Tokens that are computed."""


def rows_of(examples: np.ndarray, rows_per_example: int) -> np.ndarray:
    """The rows of examples, those of one example side by side."""
    return (examples[:, None] * rows_per_example + np.arange(rows_per_example)).ravel()


def cut_rows(
    rows: Sequence[np.ndarray], *, rows_per_example: int, micro_batch_tokens: int, is_padded: bool
) -> list[Piece]:
    """Cut a step into micro-batches, so that it takes the least time.

    Args:
        rows: the tokens of each row. Those of an example follow each other.
        rows_per_example: number of rows of an example, which stay in one micro-batch.
        micro_batch_tokens: about the most tokens that are computed for a micro-batch. A longer row
            is alone, or with those of its example.
        is_padded: whether rows are padded to the length of the longest, so that those of like
            length should be together. If not, those that begin alike are.
    """
    cut = _cut_by_length if is_padded else _cut_by_beginning
    by_example = [rows[i : i + rows_per_example] for i in range(0, len(rows), rows_per_example)]
    pieces = [
        rows_of(np.array(examples), rows_per_example).tolist()
        for examples in cut(by_example, micro_batch_tokens)
    ]
    return [
        Piece(piece, count_computed([rows[i] for i in piece], is_padded=is_padded))
        for piece in pieces
    ]


def count_computed(rows: Sequence[np.ndarray], *, is_padded: bool) -> int:
    """Tokens that are computed for a micro-batch of these rows."""
    if is_padded:
        return len(rows) * max(map(len, rows))
    return sum(len(segment.tokens) for segment in find_segments(rows)[0])


def _cut_by_length(examples: Sequence[Sequence[np.ndarray]], limit: int) -> Iterator[list[int]]:
    padded = [count_computed(rows, is_padded=True) for rows in examples]
    by_length = sorted(range(len(examples)), key=padded.__getitem__)

    def costs(end: int) -> Iterator[float]:
        longest = padded[by_length[end - 1]]
        fits = min(end, max(1, limit // longest))
        for size in range(1, fits + 1):
            yield GROUP_COST + size * longest

    for start, end in least_cut(len(examples), costs):
        yield by_length[start:end]


def _cut_by_beginning(examples: Sequence[Sequence[np.ndarray]], limit: int) -> Iterator[list[int]]:
    # The rows of an example begin alike if any do, so the first of them stands for all.
    ordered = SortedRows.of([rows[0] for rows in examples])
    own = [count_computed(rows, is_padded=False) for rows in examples]

    def costs(end: int) -> Iterator[float]:
        tokens, shared = 0, 0
        for start in reversed(range(end)):
            tokens += own[ordered.order[start]] - shared
            if tokens > limit and end - start > 1:
                return
            yield GROUP_COST + tokens
            shared = ordered.shared[start] if ordered.shared[start] >= MIN_SHARED else 0

    for start, end in least_cut(len(examples), costs):
        yield ordered.order[start:end]


def read_micro_batches(
    data: TokenizedData,
    indices: np.ndarray,
    *,
    rows_per_example: int,
    micro_batch_tokens: int,
    is_padded: bool,
    pad_token_id: int,
) -> Iterator[MicroBatch]:
    """Read rows of a file in micro-batches. For the other arguments, see `cut_rows`.

    Args:
        data: the file.
        indices: index of each row.
        pad_token_id: what rows are padded with. It can be any token, because it is not learned and
            no learned token sees it.
    """
    rows = [data.read(index) for index in indices]
    tokens = [row.input_ids for row in rows]
    owners = find_owners(tokens, indices.tolist())
    pieces = cut_rows(
        tokens,
        rows_per_example=rows_per_example,
        micro_batch_tokens=micro_batch_tokens,
        is_padded=is_padded,
    )
    for piece in pieces:
        yield collate(
            [rows[i] for i in piece.rows],
            examples=indices[piece.rows].tolist(),
            owners=[owners[i] for i in piece.rows],
            computed_tokens=piece.tokens,
            pad_token_id=pad_token_id,
            dataset=data.sha256,
        )


def collate(
    rows: Sequence[TokenizedRow],
    *,
    examples: Sequence[int],
    owners: Sequence[Sequence[Stretch]],
    computed_tokens: int,
    pad_token_id: int,
    dataset: str = "",
) -> MicroBatch:
    """Pad rows at their end to the length of the longest. For the arguments, see `MicroBatch`."""
    lengths = [len(row.input_ids) for row in rows]
    input_ids_BL = np.full((len(rows), max(lengths)), pad_token_id, dtype=np.int64)
    labels_BL = np.full_like(input_ids_BL, IGNORE_INDEX)
    for i, row in enumerate(rows):
        input_ids_BL[i, : lengths[i]] = row.input_ids
        labels_BL[i, : lengths[i]] = row.labels
    return MicroBatch(
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(labels_BL),
        examples,
        lengths,
        owners,
        computed_tokens,
        dataset,
    )


def evaluated_together(lengths: np.ndarray, rows_per_example: int) -> Iterator[np.ndarray]:
    """All rows of a file of these lengths, some of like length at a time, for an evaluation.

    Those of an example stay together.
    """
    longest = lengths.reshape(-1, rows_per_example).max(axis=1)
    by_length = np.argsort(longest, kind="stable")
    for start in range(0, len(by_length), _EVALUATED_TOGETHER):
        yield rows_of(by_length[start : start + _EVALUATED_TOGETHER], rows_per_example)
