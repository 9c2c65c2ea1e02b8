"""The loss log of a job: one row per optimizer step, and how a row is written as CSV and JSON."""

import json
from collections.abc import Iterable, Iterator

from app.core.job.training_config import Frozen


class StepMetrics(Frozen):
    """What one optimizer step did. Losses are in nats per learned token."""

    step: int
    """Number of optimizer steps taken so far; 1 for the first row."""

    epoch: float
    """Number of passes over the training file so far, with a fraction."""

    train_loss: float
    train_mean_token_accuracy: float
    """Fraction of learned tokens that the model, before the step, ranked first."""

    valid_loss: float | None = None
    """Loss over the whole validation file. Null for steps without an evaluation."""

    valid_mean_token_accuracy: float | None = None
    learning_rate: float
    grad_norm: float
    """L2 norm of the adapter's gradient, before clipping."""

    tokens_seen: int
    """Number of tokens read in training so far, over all epochs and attempts, without padding."""

    elapsed_s: float
    """Seconds spent in the training loop so far, over all attempts, without loading, evaluation and
    saving."""

    def as_row(self) -> dict[str, float | int | None]:
        """The row under the column names of `COLUMNS`."""
        named = self.model_dump()
        named["train_accuracy"] = self.train_mean_token_accuracy
        named["full_valid_loss"] = self.valid_loss
        named["full_valid_mean_token_accuracy"] = self.valid_mean_token_accuracy
        return {column: named[column] for column in COLUMNS}


COLUMNS: tuple[str, ...] = (
    # OpenAI's five, in its order: scripts read them by position.
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    # Ours.
    "train_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
    "learning_rate",
    "grad_norm",
    "epoch",
    "tokens_seen",
    "elapsed_s",
)


CSV_HEADER = ",".join(COLUMNS) + "\n"


def csv_line(row: StepMetrics) -> str:
    """The row as a line of CSV. A value that was not measured is an empty cell."""
    cells = ("" if value is None else str(value) for value in row.as_row().values())
    return ",".join(cells) + "\n"


def json_line(row: StepMetrics) -> str:
    """The row as a JSON object, with the column names of the CSV."""
    return json.dumps(row.as_row()) + "\n"


def csv_lines(rows: Iterable[StepMetrics]) -> Iterator[str]:
    """The log as CSV: the header, then a line for each row."""
    yield CSV_HEADER
    yield from map(csv_line, rows)


def json_lines(rows: Iterable[StepMetrics]) -> Iterator[str]:
    """The log as JSON lines: one object for each row."""
    return map(json_line, rows)
