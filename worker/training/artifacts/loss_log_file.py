"""The loss log of a job while it grows: a file, for a job may take a million steps."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from app.core.job.loss_log import StepMetrics


class LossLogFile:
    """One row per optimizer step, in the order of the steps."""

    def __init__(self, path: Path, *, length: int = 0) -> None:
        """Begin the log in `path` anew, or continue the one of `length` rows that is there.

        Raises:
            RuntimeError: it has not exactly the rows of the steps from 1 to `length`.
        """
        self._path = path
        self._length = length
        if length == 0:
            path.write_bytes(b"")
        elif not self._is_whole():
            raise RuntimeError(f"{path.name} is not the loss log of steps 1 to {length}.")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[StepMetrics]:
        with self._path.open("rb") as lines:
            for line in lines:
                yield StepMetrics.model_validate_json(line)

    def _is_whole(self) -> bool:
        with self._path.open("rb") as lines:
            # A last line without its end would swallow the row that is appended to it.
            is_ended = all(line.endswith(b"\n") for line in lines)
        steps = range(1, self._length + 1)
        return is_ended and all(a == b for a, b in zip_longest(steps, (row.step for row in self)))

    def append(self, row: StepMetrics) -> None:
        with self._path.open("a", encoding="utf-8") as log:
            log.write(row.model_dump_json() + "\n")
        self._length += 1

    def sample(self, rows: int) -> list[StepMetrics]:
        """About `rows` rows, evenly spread: of those with a validation loss if there are any.

        The last one is always among them.
        """
        steps = [row.step for row in self if row.valid_loss is not None]
        steps = steps or list(range(1, self._length + 1))
        stride = max(1, len(steps) // rows)
        wanted = set(steps[::-stride])
        return [row for row in self if row.step in wanted]
