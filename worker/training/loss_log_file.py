"""The loss log of a job while it grows: a file, for a job may take a million steps."""

from collections.abc import Iterator
from pathlib import Path

from app.core.loss_log import StepMetrics


class LossLogFile:
    """One row per optimizer step, in the order of the steps, in `path`, which is made anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._length = 0
        path.write_bytes(b"")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[StepMetrics]:
        with self._path.open("rb") as lines:
            for line in lines:
                yield StepMetrics.model_validate_json(line)

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
