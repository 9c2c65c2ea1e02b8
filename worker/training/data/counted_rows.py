"""What an estimate knows about the rows of a file."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_LEARNED = 0.5
"""Fraction of the tokens that are learned, where nobody has counted them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a file, or a sample of them that stands for all. A preference has two."""

    lengths: np.ndarray
    """Tokens of each row, after truncation."""
    count: int
    """Number of rows in the file. It is larger than the number of lengths for a sample."""
    learned_tokens: int | None = None
    """Tokens among `lengths` that are learned. None if nobody has counted them."""
    read: Callable[[int], np.ndarray] | None = None
    """Returns the tokens of a row, given its place in `lengths`. None if nobody knows them: then
    they are taken to have no beginnings in common."""

    @property
    def tokens(self) -> int:
        """Tokens of the file."""
        return round(float(self.lengths.mean()) * self.count)

    def read_all(self, places: np.ndarray) -> list[np.ndarray]:
        """The tokens of rows, given their places in `lengths`."""
        if self.read is not None:
            return [self.read(place) for place in places]
        return [np.full(self.lengths[place], place) for place in places]

    @property
    def learned(self) -> float:
        """Fraction of the tokens that are learned."""
        if self.learned_tokens is None:
            return _LEARNED
        return self.learned_tokens / int(self.lengths.sum())
