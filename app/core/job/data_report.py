"""What the check of a job's data found: the report that `GET .../jobs/{id}/data` shows.

A training child writes it, which may be hostile, so every number, text and list has a limit.
"""

from typing import Annotated, Literal

from pydantic import Field

from app.core.job.child.child_text import Code, ShortText, Text
from app.core.job.estimate import Estimate
from app.core.job.frozen import Frozen
from app.core.job.loss_log import MAX_COUNT

MAX_LINES_NAMED = 20
"""How many lines a warning names; the rest are only counted."""
MAX_WARNINGS = 40
MAX_BINS = 32
MAX_LONGEST = 10
"""How many of the longest examples a report names."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Average = Annotated[float, Field(ge=0, le=MAX_COUNT)]
Lines = Annotated[tuple[Count, ...], Field(max_length=MAX_LINES_NAMED)]
FileParam = Literal["training_file", "validation_file"]


class Distribution(Frozen):
    """How a number is distributed over examples."""

    min: Count
    median: Average
    mean: Average
    p95: Average
    """The 95th percentile: 95 % of the examples have at most so many."""
    max: Count


class LengthBin(Frozen):
    """One bar of the histogram of lengths."""

    up_to_tokens: Count
    """Longest example that is counted here. The bar before it ends one below its shortest."""
    examples: Count


class LongExample(Frozen):
    """One of the longest examples of a file."""

    line: Count
    tokens: Count


class DataWarning(Frozen):
    """Something that is probably a mistake, though the job can train on it."""

    code: Code
    message: Text
    """What was found, and what to do about it."""
    param: FileParam | None
    """File that it concerns, as the field of the job that names it. Null if it concerns all."""
    count: Count
    """Number of lines, examples or answers that it concerns."""
    lines: Lines = ()
    """The first lines that it concerns."""
    same_as: Lines = ()
    """For repeated rows: the line that each of `lines` repeats. It is in the validation file if the
    warning is `also_in_validation_file`, and otherwise in the same file."""


class FileReport(Frozen):
    """What tokenizing a file found.

    An example is a line of the file, or one of several examples that a conversation becomes. A
    preference, with both answers, is one example.
    """

    file_id: ShortText
    filename: ShortText
    lines: Count
    """Number of lines or rows with an example."""
    examples: Count
    """Number of examples that are trained or evaluated on."""
    tokens: Count
    """Number of their tokens, which is what an epoch reads."""
    learned_tokens: Count
    """Number of those tokens that are learned."""
    tokens_per_example: Distribution | None
    """Lengths of all examples, before any is cut off or left out. That of a preference is its
    longer answer with the prompt. Null if there is none."""
    learned_tokens_per_example: Distribution | None
    """Learned tokens of the examples that are trained or evaluated on. Null if there is none."""
    lengths: tuple[LengthBin, ...] = Field(max_length=MAX_BINS)
    """Histogram of the lengths of all examples, before any is cut off or left out."""
    longest: tuple[LongExample, ...] = Field(max_length=MAX_LONGEST)
    """The longest examples, the longest first."""
    truncated: Count
    """Number of examples whose end was cut off because they are longer than `context_length`."""
    dropped: Count
    """Number of examples that were left out because they are longer than `context_length`."""
    lost_learned_tokens: Count
    """Number of learned tokens that were cut off or left out with these examples."""
    lost_stop_tokens: Count
    """Number of answers in truncated examples whose end, with the token that stops the model, was
    cut off."""
    nothing_to_learn: Count
    """Number of examples that were left out because no token of them is learned, or because both
    answers of a preference have the same tokens."""
    duplicates: Count
    """Number of lines with exactly the tokens of an earlier line."""
    split_conversations: Count
    """Number of conversations that became several examples, one for each learned answer."""
    split_examples: Count
    """Number of examples that these conversations became."""
    refusal: Text | None
    """Why the file cannot be used. Null if it can."""


class HeldOut(Frozen):
    """The part of the training file that `validation_split` takes to evaluate on."""

    examples: Count
    tokens: Count
    learned_tokens: Count


class DataReport(Frozen):
    """What a job will learn, found by tokenizing its data before training."""

    training_file: FileReport
    validation_file: FileReport | None
    held_out: HeldOut | None
    """Examples of the training file that are evaluated on instead. Null without
    `validation_split`."""
    stop_tokens: tuple[ShortText, ...] = Field(max_length=MAX_LONGEST)
    """Texts that end what the model learns to write."""
    warnings: tuple[DataWarning, ...] = Field(max_length=MAX_WARNINGS)
    estimate: Estimate | None = None
    """What the training takes. Null if the job cannot train, or if it would train on a GPU, whose
    memory the check leaves alone."""
