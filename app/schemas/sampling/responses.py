"""Wire format of responses, OpenAI's newest API, for text alone."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from app.core.dataset.rows.fields import is_list_of_objects
from app.core.sampling.messages import MAX_TOP_LOGPROBS, TextForm
from app.schemas.bodies import RequestBody, ResponseBody
from app.schemas.sampling.chat import Name, Schema
from app.schemas.sampling.fields import (
    UNSUPPORTED,
    FormatCreate,
    Ignored,
    SamplingCreate,
    Unsupported,
    refuse_unless,
)
from app.schemas.sampling.usage import TokenLogProbRead

LOGPROBS = "message.output_text.logprobs"


class TextFormatCreate(FormatCreate):
    name: Name | None = None
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema", validate_default=True)
    """JSON schema that the answer fits, with the type `json_schema`."""
    strict: bool | None = None
    """Accepted for OpenAI's clients. An answer always fits the schema."""

    @property
    def form(self) -> TextForm | None:
        """What the sampler holds the answer to."""
        return None if self.type == "text" else TextForm(json_schema=self.schema_)


class TextCreate(RequestBody):
    format: TextFormatCreate | None = None
    verbosity: Annotated[Any, refuse_unless(["medium"])] = None
    """Length of an answer. Only `medium` is supported, which changes nothing."""


class ResponseStreamOptions(RequestBody):
    include_obfuscation: Ignored = None


def _check_input(value: Any) -> Any:
    is_text = isinstance(value, str) and value
    if not is_text and not (is_list_of_objects(value) and value):
        raise PydanticCustomError("bad_input", "Give a text, or a list of messages")
    return value


def _check_tool_choice(value: Any) -> Any:
    if value not in (None, "auto", "none"):
        raise PydanticCustomError(UNSUPPORTED, "Tools are not supported here; leave it out")
    return value


_INPUT_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]
}


class ResponseCreate(SamplingCreate):
    input: Annotated[Any, AfterValidator(_check_input), WithJsonSchema(_INPUT_SCHEMA)]
    """What the model answers: a text, or a list of messages of text."""
    instructions: str | None = None
    """Text of a system message before the input."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of the answer. By default, as many as the model's window holds."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Number of the most likely tokens that are told with each token."""
    include: list[Literal["message.output_text.logprobs"]] | None = None
    """What the answer has besides the text: the log-probabilities of its tokens."""
    text: TextCreate | None = None
    """Format of the answer's text."""
    stream_options: ResponseStreamOptions | None = None
    tools: Annotated[Any, refuse_unless([[]])] = None
    """Tools that the model may call. None are supported here: use chat completions."""
    tool_choice: Annotated[Any, AfterValidator(_check_tool_choice)] = None
    """Whether the model may call tools, of which there are none here."""
    parallel_tool_calls: Ignored = None
    truncation: Annotated[Any, refuse_unless(["disabled"])] = None
    """What happens to an input that is too long. Only `disabled` is supported, which refuses it."""
    background: Annotated[Any, refuse_unless([False])] = None
    """Whether the answer is made in the background, which is not supported."""
    access_programs: Unsupported = None
    background_options: Unsupported = None
    context_management: Unsupported = None
    conversation: Unsupported = None
    image: Unsupported = None
    max_tool_calls: Ignored = None
    previous_response_id: Unsupported = None
    prompt: Unsupported = None
    reasoning: Unsupported = None

    @property
    def form(self) -> TextForm | None:
        """What the sampler holds the answer to."""
        return self.text.format.form if self.text and self.text.format else None

    @property
    def told_logprobs(self) -> int | None:
        """Number of likely tokens to tell with each token; None for no log-probabilities."""
        wants_any = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wants_any else None


class OutputTextRead(ResponseBody):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]] = Field(default=[])
    logprobs: list[TokenLogProbRead] = Field(default=[])


Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessageRead(ResponseBody):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputTextRead]


class IncompleteDetails(ResponseBody):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(ResponseBody):
    cached_tokens: int
    """Tokens at the beginning of the input that were read for an earlier request."""
    cache_write_tokens: int = 0
    """Always 0, because a cache costs nothing extra here."""


class OutputTokensDetails(ResponseBody):
    reasoning_tokens: int = 0
    """Always 0, because no reasoning is hidden from the answer."""


class ResponseUsageRead(ResponseBody):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, *, prompt: int, cached: int, completion: int) -> Self:
        return cls(
            input_tokens=prompt,
            input_tokens_details=InputTokensDetails(cached_tokens=cached),
            output_tokens=completion,
            output_tokens_details=OutputTokensDetails(),
            total_tokens=prompt + completion,
        )


class TextRead(ResponseBody):
    format: dict[str, Any]
    """Format of the answer's text, as the request has it."""


class ResponseRead(ResponseBody):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessageRead]
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: Literal[False] = False
    """Always false, because no answer is kept."""
    system_fingerprint: str
    """`fp_` with the first digits of the sha256 of the adapter's weights, and with digits that
    change with its configuration and its base model. Without an adapter, those of the base
    model."""
    temperature: float
    text: TextRead
    tool_choice: Literal["auto", "none"] = "auto"
    tools: list[dict[str, Any]] = Field(default=[])
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsageRead | None = None
    metadata: dict[str, str]
