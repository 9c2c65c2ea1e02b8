"""The loss log of a job: one row per optimizer step, and its three written forms."""

import csv
import io
import json
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict


class StepMetrics(BaseModel):
    """What one optimizer step did. Losses are nats per learned token."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    step: int
    """Optimizer steps taken so far, from 1."""

    epoch: float
    """Passes over the training file completed so far, with a fraction."""

    train_loss: float
    train_mean_token_accuracy: float
    """Fraction of learned tokens that the model, before the step, ranked first."""

    valid_loss: float | None = None
    """Over the whole validation file, at the steps where it was evaluated."""

    valid_mean_token_accuracy: float | None = None
    learning_rate: float
    grad_norm: float
    """L2 norm of the adapter's gradient, before clipping."""

    tokens_seen: int
    """Tokens read in training so far, over all epochs and attempts; never padding."""

    elapsed_s: float
    """Seconds spent in the training loop so far, over all attempts; neither loading, nor
    evaluation, nor saving."""

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


def csv_lines(rows: Iterable[StepMetrics]) -> Iterator[str]:
    """The header, then a line per row; a value that was not measured is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row.as_row())
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    if buffer.getvalue():
        yield buffer.getvalue()


def json_lines(rows: Iterable[StepMetrics]) -> Iterator[str]:
    """One JSON object per row, with the column names of the CSV."""
    for row in rows:
        yield json.dumps(row.as_row()) + "\n"
