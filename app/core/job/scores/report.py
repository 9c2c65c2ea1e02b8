"""What a report on a tuned model says: its answers, those of its base model, and their scores."""

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.core.job.child.child_text import clean
from app.core.job.frozen import Frozen
from app.core.job.loss_log import MAX_COUNT

REPORT = "report"
"""Kind of the tasks that make reports."""

VARIANT = "greedy"
"""Variant of these tasks. There is one report for each adapter."""

REQUEST_NAME = "report-request.json"
"""A `ReportRequest`, in the directory of the task."""

MAX_PROMPTS = 5
"""Most prompts whose answers are shown."""

MAX_PROMPT_CHARACTERS = 4000
"""Longest prompt of a request, and most of a text that is shown."""

MAX_EXAMPLES = 50
"""Most examples of the validation data that are answered."""

ShownText = Annotated[str, AfterValidator(partial(clean, limit=MAX_PROMPT_CHARACTERS))]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
ExampleCount = Annotated[int, Field(ge=0, le=MAX_EXAMPLES)]


class ReportRequest(Frozen):
    """What a report answers besides the validation data."""

    prompts: tuple[str, ...] = Field(default=(), max_length=MAX_PROMPTS)
    """Prompts of the request. Empty for the first ones of the validation data."""
    are_chats: bool
    """Whether each prompt is the message of a user. Otherwise the model continues it."""


class Scores(Frozen):
    """How the answers of one model agree with the reference answers: means over the examples."""

    exact_match: Fraction
    """Fraction of the answers that equal their reference, but for whitespace around them."""
    token_f1: Fraction
    """Mean token F1, as SQuAD defines it."""
    valid_json: Fraction | None
    """Fraction of the answers that are JSON, where the reference is. Null if no reference is."""


class ModelAnswer(Frozen):
    """The answer of one model to a prompt."""

    text: ShownText
    finish_reason: Literal["stop", "length"] | None
    """`stop` if the model ended its answer, `length` if the answer was cut at its maximum length.
    Null if the time limit came first."""


class AnswerPair(Frozen):
    """A prompt with the answers of both models."""

    prompt: ShownText
    reference: ShownText | None
    """Answer of the validation data. Null for a prompt of the request."""
    base: ModelAnswer
    """Answer of the base model, without any adapter."""
    tuned: ModelAnswer
    """Answer of the tuned model."""
    refusal: ShownText | None = None
    """Why the models cannot read the prompt. Null if they can. Otherwise both answers are empty."""


class AnswerReport(Frozen):
    """Greedy answers of a tuned model and its base model, compared with the reference answers."""

    source: Literal["validation_file", "validation_split"] | None
    """Where the examples are from. Null if the report only answers prompts of the request."""
    examples: Count
    """Number of examples in the validation data."""
    chosen_examples: ExampleCount
    """Number of examples that were drawn by the job's seed."""
    skipped_examples: ExampleCount
    """Number of drawn examples without a text to compare with, or whose prompt a model cannot read.
    """
    scored_examples: ExampleCount
    """Number of drawn examples that both models answered in time. The scores are means over them.
    """
    json_references: ExampleCount
    """Number of scored examples whose reference is a JSON object or array."""
    base: Scores | None
    """Scores of the base model. Null if no example was scored."""
    tuned: Scores | None
    """Scores of the tuned model. Null if no example was scored."""
    answers: tuple[AnswerPair, ...] = Field(max_length=MAX_PROMPTS)
    """Prompts with the answers of both models, to read."""
    processor_s: float = Field(ge=0)
    """Processor time that the answers took, in seconds."""
    is_over_time: bool
    """Whether the time limit ended the report before all examples were answered."""
