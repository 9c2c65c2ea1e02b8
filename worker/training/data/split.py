"""Holds out a part of the training file to evaluate on."""

import hashlib

import numpy as np

from worker.training.data.dataset import TokenizedData, TokenizedRow
from worker.training.failures import TrainingFailedError

_SPLIT_STREAM = 2**32
"""Tells the random numbers of the split from those of the epochs, which are counted from 0."""


class SelectedRows(TokenizedData):
    """Some rows of a file, in the order of the file."""

    def __init__(self, whole: TokenizedData, indices: np.ndarray) -> None:
        self._whole = whole
        self._indices = indices
        self.lengths = whole.lengths[indices]
        self.learned = whole.learned[indices]
        self.lines = whole.lines[indices]
        chosen = f"{whole.sha256} {indices.tolist()}"
        self.sha256 = hashlib.sha256(chosen.encode()).hexdigest()

    def read(self, index: int) -> TokenizedRow:
        return self._whole.read(self._indices[index])


def count_held_out(examples: int, *, fraction: float) -> int:
    """Number of examples that are taken to evaluate on: at least one, whatever the fraction.

    Args:
        examples: number of lines of the file that have an example.
        fraction: part of them to evaluate on.

    Raises:
        TrainingFailedError: `too_few_examples`, when there is none left to train on.
    """
    held_out = max(1, round(fraction * examples))
    if held_out == examples:
        raise TrainingFailedError(
            "too_few_examples",
            f"A validation_split of {fraction:g} leaves none of the {examples:,} examples to "
            "train on. Upload more examples, or omit validation_split.",
            param="hyperparameters.validation_split",
        )
    return held_out


def split_rows(
    data: TokenizedData, *, fraction: float, seed: int
) -> tuple[SelectedRows, SelectedRows]:
    """Split rows into those to train on and those to evaluate on.

    The same rows, fraction and seed always give the same split. The rows of a line stay together,
    because those of a chat repeat each other.

    Args:
        data: rows that are trained or evaluated on.
        fraction: part of their lines to evaluate on.
        seed: seed of the job.

    Raises:
        TrainingFailedError: `too_few_examples`, when there is no row left to train on.
    """
    lines = np.unique(data.lines)
    held_out = count_held_out(len(lines), fraction=fraction)
    order = np.random.default_rng([seed, _SPLIT_STREAM]).permutation(len(lines))
    is_held_out = np.isin(data.lines, lines[order[:held_out]])
    return (
        SelectedRows(data, np.flatnonzero(~is_held_out)),
        SelectedRows(data, np.flatnonzero(is_held_out)),
    )
