"""The loss log of a job while it grows.

A job may take a million steps, and each checkpoint holds the log so far. So the rows are in files,
memory holds a few numbers per step, and no row is parsed or formatted a second time.
"""

import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from app.core.job.loss_log import CSV_HEADER, StepMetrics, csv_line, json_line

_CSV_NAME = "metrics.csv"
_JSON_NAME = "metrics.jsonl"
_ROWS_PER_WRITE = 256


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of a job so far, as the chart shows them."""

    train: "array[float]" = field(default_factory=lambda: array("d"))
    """Training loss of each step, from step 1."""
    valid: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss of each evaluation."""


class LossLog:
    """One row per optimizer step, in the order of the steps.

    Attributes:
        losses: losses of all rows.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        """Start an empty log in `path`, or continue the log of `length` rows that is there.

        The same log as CSV and as JSON grows beside it.

        Raises:
            RuntimeError: the file does not have exactly the rows of steps 1 to `length`.
        """
        self.losses = Losses()
        self._path = path
        self._csv, self._json = path.with_name(_CSV_NAME), path.with_name(_JSON_NAME)
        self._starts = array("q")
        self._size = 0
        self._unwritten: list[StepMetrics] = []
        if length == 0:
            path.write_bytes(b"")
        self._csv.write_text(CSV_HEADER, encoding="utf-8")
        self._json.write_bytes(b"")
        if not self._read_all() or len(self) != length:
            raise RuntimeError(f"{path.name} is not the loss log of steps 1 to {length}.")

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[StepMetrics]:
        with self._path.open("rb") as lines:
            yield from map(StepMetrics.model_validate_json, lines)

    def append(self, row: StepMetrics) -> None:
        line = row.model_dump_json() + "\n"
        with self._path.open("a", encoding="utf-8") as log:
            log.write(line)
        self._note(row, len(line))

    def copy_tables(self, directory: Path) -> None:
        """Put the log so far, as CSV and as JSON, into `directory`."""
        self._write_tables()
        for table in (self._csv, self._json):
            shutil.copyfile(table, directory / table.name)

    def sample(self, rows: int) -> list[StepMetrics]:
        """About `rows` rows, evenly spread, with the last one among them.

        If there are rows with a validation loss, the sample has only those.
        """
        steps = [step for step, _ in self.losses.valid] or range(1, len(self) + 1)
        stride = max(1, len(steps) // rows)
        with self._path.open("rb") as lines:
            return [self._read(lines, step) for step in reversed(steps[::-stride])]

    def _read(self, lines: BinaryIO, step: int) -> StepMetrics:
        lines.seek(self._starts[step - 1])
        return StepMetrics.model_validate_json(lines.readline())

    def _read_all(self) -> bool:
        """Read the rows that are there. Returns whether they are whole and in order."""
        with self._path.open("rb") as lines:
            for line in lines:
                row = StepMetrics.model_validate_json(line)
                # A last line without its end would swallow the row that is appended to it.
                if row.step != len(self) + 1 or not line.endswith(b"\n"):
                    return False
                self._note(row, len(line))
        return True

    def _note(self, row: StepMetrics, size: int) -> None:
        self._starts.append(self._size)
        self._size += size
        self.losses.train.append(row.train_loss)
        if row.valid_loss is not None:
            self.losses.valid.append((row.step, row.valid_loss))
        self._unwritten.append(row)
        if len(self._unwritten) == _ROWS_PER_WRITE:
            self._write_tables()

    def _write_tables(self) -> None:
        for table, format_row in ((self._csv, csv_line), (self._json, json_line)):
            with table.open("a", encoding="utf-8") as file:
                file.writelines(map(format_row, self._unwritten))
        self._unwritten.clear()
