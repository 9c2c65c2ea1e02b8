"""The loss log of a job: one row per optimizer step, and how a row is written as CSV and JSON.

Where there is validation data, a row of step 0 comes first: how the model does on it before
training. Only the file in `result_files` is without it.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Self

from pydantic import Field, model_validator

from app.core.job.frozen import Frozen

MAX_STEP = 10**9
"""Largest number of a step: more than any job takes, and a valid integer of both databases."""

MAX_COUNT = 10**15
"""Largest number of tokens, lines or bytes that is believed."""

_MAX_NUMBER = 1e9
"""Largest loss, epoch or duration that is believed, so that a text with it stays short."""

_MAX_LOSS_IN_PERPLEXITY = math.log(_MAX_NUMBER)


class Rewards(Frozen):
    """How a model prefers the answers of pairs, as means over pairs.

    The reward of an answer is beta times the difference of its log-probability by the model and by
    the reference, as the loss compares them (Rafailov et al. 2023, arXiv:2305.18290).
    """

    chosen: float = Field(ge=-_MAX_NUMBER, le=_MAX_NUMBER)
    """Mean reward of preferred answers."""

    rejected: float = Field(ge=-_MAX_NUMBER, le=_MAX_NUMBER)
    """Mean reward of the other answers."""

    accuracy: float = Field(ge=0, le=1)
    """Fraction of pairs whose preferred answer has the larger reward."""

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected

    def named(self, prefix: str) -> dict[str, float]:
        """The rewards with their margin, under the names of columns."""
        return {
            f"{prefix}_chosen_reward": self.chosen,
            f"{prefix}_rejected_reward": self.rejected,
            f"{prefix}_reward_margin": self.margin,
            f"{prefix}_reward_accuracy": self.accuracy,
        }


class StepMetrics(Frozen):
    """What one optimizer step did, or an evaluation of the base model.

    Losses are in nats per learned token. In preference tuning they are in nats per pair.
    """

    step: int = Field(ge=0, le=MAX_STEP)
    """Number of optimizer steps taken so far; 0 for the evaluation of the base model."""

    epoch: float = Field(ge=0, le=_MAX_NUMBER)
    """Number of passes over the training file so far, with a fraction."""

    train_loss: float | None = Field(default=None, ge=-_MAX_NUMBER, le=_MAX_NUMBER)
    """Loss over the examples of the step, before it. Null for step 0, which has none."""

    train_mean_token_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Fraction of learned tokens that the model, before the step, ranked first. In preference
    tuning, only preferred answers count. Null for step 0."""

    valid_loss: float | None = Field(default=None, ge=-_MAX_NUMBER, le=_MAX_NUMBER)
    """Loss over the whole validation file. Null for steps without an evaluation."""

    valid_mean_token_accuracy: float | None = Field(default=None, ge=0, le=1)
    learning_rate: float | None = Field(default=None, ge=0, le=1)
    """Learning rate of the step. Null for step 0."""

    grad_norm: float | None = Field(default=None, ge=0)
    """L2 norm of the adapter's gradient, before clipping. Null for step 0."""

    tokens_seen: int = Field(ge=0, le=MAX_COUNT)
    """Number of tokens read in training so far, over all epochs and attempts, without padding."""

    elapsed_s: float = Field(ge=0, le=_MAX_NUMBER)
    """Seconds spent in the training loop so far, over all attempts, without loading, evaluation and
    saving."""

    train_rewards: Rewards | None = None
    """Rewards of the pairs of the step, before it. Null for supervised tuning and step 0."""

    valid_rewards: Rewards | None = None
    """Rewards of all validation pairs. Null for supervised tuning and steps without an
    evaluation."""

    @model_validator(mode="after")
    def _check_measurements(self) -> Self:
        of_training = (
            self.train_loss,
            self.train_mean_token_accuracy,
            self.learning_rate,
            self.grad_norm,
        )
        if self.step == 0:
            if self.valid_loss is None or any(value is not None for value in of_training):
                raise ValueError("step 0 has an evaluation and nothing else")
        elif None in of_training:
            raise ValueError("a step has a loss, an accuracy, a learning rate and a gradient")
        return self

    @property
    def valid_perplexity(self) -> float | None:
        """Exponential of the validation loss, at most a thousand million. None for pairs."""
        if self.valid_loss is None or self.has_rewards:
            return None
        return math.exp(min(self.valid_loss, _MAX_LOSS_IN_PERPLEXITY))

    @property
    def has_rewards(self) -> bool:
        """Whether it is of preference tuning."""
        return self.train_rewards is not None or self.valid_rewards is not None

    def measurements(self) -> dict[str, float | int]:
        """All that was measured, by name, in one level. The step is not among it."""
        plain = self.model_dump(
            exclude={"step", "train_rewards", "valid_rewards"}, exclude_none=True
        )
        return plain | self.named_rewards()

    def named_rewards(self) -> dict[str, float]:
        """Rewards under the names of their columns. Empty for supervised tuning."""
        train, valid = self.train_rewards, self.valid_rewards
        named = {} if train is None else train.named("train")
        return named if valid is None else named | valid.named("valid")

    def as_row(self) -> dict[str, float | int | None]:
        """The row under the column names of `COLUMNS`, and of `REWARD_COLUMNS` if it has some."""
        named: dict[str, float | int | None] = self.model_dump()
        named["train_accuracy"] = self.train_mean_token_accuracy
        named["full_valid_loss"] = self.valid_loss
        named["full_valid_mean_token_accuracy"] = self.valid_mean_token_accuracy
        named["valid_perplexity"] = self.valid_perplexity
        row = {column: named[column] for column in COLUMNS}
        if self.has_rewards:
            row |= dict.fromkeys(REWARD_COLUMNS) | self.named_rewards()
        return row


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
    "valid_perplexity",
)

REWARD_COLUMNS: tuple[str, ...] = tuple(
    name
    for prefix in ("train", "valid")
    for name in Rewards(chosen=0, rejected=0, accuracy=0).named(prefix)
)
"""Columns that follow in the log of preference tuning."""


def csv_header(first_row: StepMetrics | None) -> str:
    """The header of a log that begins with this row."""
    has_rewards = first_row is not None and first_row.has_rewards
    return ",".join(COLUMNS + (REWARD_COLUMNS if has_rewards else ())) + "\n"


def csv_line(row: StepMetrics) -> str:
    """The row as a line of CSV. A value that was not measured is an empty cell."""
    cells = ("" if value is None else str(value) for value in row.as_row().values())
    return ",".join(cells) + "\n"


def json_line(row: StepMetrics) -> str:
    """The row as a JSON object, with the column names of the CSV."""
    return json.dumps(row.as_row()) + "\n"


def csv_texts(batches: Iterable[Iterable[StepMetrics]]) -> Iterator[str]:
    """The log as CSV: the header, then the lines of each batch of rows."""
    pieces = iter(batches)
    first = list(next(pieces, ()))
    yield csv_header(first[0] if first else None)
    for rows in chain([first], pieces):
        yield "".join(map(csv_line, rows))


def json_texts(batches: Iterable[Iterable[StepMetrics]]) -> Iterator[str]:
    """The log as JSON lines: those of each batch of rows."""
    for rows in batches:
        yield "".join(map(json_line, rows))


def in_batches(
    rows: Sequence[StepMetrics], read: Callable[[int], Sequence[StepMetrics]]
) -> Iterator[Sequence[StepMetrics]]:
    """Read a log of any length in constant memory.

    Args:
        rows: the first rows of the log.
        read: returns some rows in the order of their steps, from the step that it is given; none
            at the end of the log.
    """
    while rows:
        yield rows
        rows = read(rows[-1].step + 1)
