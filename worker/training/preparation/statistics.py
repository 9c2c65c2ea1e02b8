"""Describes numbers of many examples with a few."""

import heapq

import numpy as np

from app.core.job.data_report import MAX_LONGEST, Distribution, LengthBin, LongExample

_FIRST_BIN = 16


def describe(numbers: np.ndarray) -> Distribution | None:
    """How these numbers are distributed. None if there is none."""
    if not len(numbers):
        return None
    median, p95 = np.percentile(numbers, [50, 95])
    return Distribution(
        min=int(numbers.min()),
        median=float(median),
        mean=float(numbers.mean()),
        p95=float(p95),
        max=int(numbers.max()),
    )


def histogram(lengths: np.ndarray) -> tuple[LengthBin, ...]:
    """Examples by their length. Each bar ends at twice the length of the one before."""
    bounds = [0, _FIRST_BIN]
    while len(lengths) and bounds[-1] < lengths.max():
        bounds.append(2 * bounds[-1])
    # A length is counted in the first bar that does not end below it.
    counts = np.bincount(np.searchsorted(bounds[1:], lengths), minlength=len(bounds) - 1)
    return tuple(
        LengthBin(up_to_tokens=bound, examples=int(count))
        for bound, count in zip(bounds[1:], counts, strict=True)
    )


class Longest:
    """Keeps the longest examples."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []

    def add(self, line: int, tokens: int) -> None:
        entry = (tokens, -line)  # of two that are equally long, the first line
        if len(self._heap) < MAX_LONGEST:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def as_examples(self) -> tuple[LongExample, ...]:
        """The longest examples, the longest first."""
        ordered = sorted(self._heap, reverse=True)
        return tuple(LongExample(line=-line, tokens=tokens) for tokens, line in ordered)
