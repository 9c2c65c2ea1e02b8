"""Wire format of chat completions: OpenAI's requests, answers and chunks."""

from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from app.core.sampling.messages import MAX_TOP_LOGPROBS, FinishReason, TextForm
from app.schemas.bodies import RequestBody, ResponseBody
from app.schemas.sampling.fields import (
    CompletionParameters,
    FormatCreate,
    Unsupported,
    refuse_unless,
)
from app.schemas.sampling.usage import TokenLogProbRead, UsageRead

_MAX_MESSAGES = 2048
_MAX_TOOLS = 128

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Schema = dict[str, Any]


class FunctionCreate(RequestBody):
    name: Name
    description: str | None = None
    parameters: Schema | None = None
    """Arguments of the function, as a JSON schema."""
    strict: bool | None = None
    """Whether calls must fit the schema of `parameters`. Only calls that `tool_choice` forces are
    held to it, so true is refused where the model may choose."""


class ToolCreate(RequestBody):
    type: Literal["function"]
    function: FunctionCreate


def _as_given(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    check(value)
    return value


class JsonSchemaCreate(RequestBody):
    name: Name
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    """JSON schema that the answer fits."""
    strict: bool | None = None
    """Accepted for OpenAI's clients. An answer always fits the schema."""


class ResponseFormat(FormatCreate):
    json_schema: JsonSchemaCreate | None = Field(default=None, validate_default=True)
    """Schema of an answer. It is needed with the type `json_schema`, and only there."""

    @property
    def form(self) -> TextForm | None:
        """What the sampler holds the answer to."""
        if self.type == "text":
            return None
        return TextForm(json_schema=self.json_schema and self.json_schema.schema_)


def _check_tool_choice(value: Any) -> Any:
    match value:
        case None | "auto" | "none" | "required":
            return value
        case {"type": "function", "function": {"name": str(), **extra}, **more} if not extra | more:
            return value
        case _:
            raise PydanticCustomError(
                "bad_tool_choice",
                "Use 'auto', 'none', 'required', or the name of one function, as in "
                '{"type": "function", "function": {"name": "..."}}',
            )


_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"type": "string", "enum": ["auto", "none", "required"]},
        {"type": "object"},
        {"type": "null"},
    ]
}
ToolChoice = Annotated[Any, AfterValidator(_check_tool_choice), WithJsonSchema(_TOOL_CHOICE_SCHEMA)]


class ChatCompletionCreate(CompletionParameters):
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=_MAX_MESSAGES)
    """Conversation so far, as in a [training file](files.md): the roles are `system`, `developer`,
    `user`, `assistant` and `tool`, and the contents are texts."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an answer. By default, as many as the model's window holds."""
    max_tokens: int | None = Field(default=None, ge=1)
    """OpenAI's older name of `max_completion_tokens`."""
    logprobs: bool | None = None
    """Whether each token of the answer is told with its log-probability."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Number of the most likely tokens that are told with each token. It needs `logprobs`."""
    tools: list[Annotated[ToolCreate, WrapValidator(_as_given)]] | None = Field(
        default=None, max_length=_MAX_TOOLS
    )
    """Functions that the model may call, as its chat template shows them."""
    tool_choice: ToolChoice = None
    """Whether the model may call a function (`auto`), must not (`none`), or must: the named one,
    or with `required` the only one that is given."""
    parallel_tool_calls: bool | None = None
    """False keeps only the first call of an answer."""
    response_format: ResponseFormat | None = None
    modalities: Annotated[Any, refuse_unless([["text"]])] = None
    """Kinds of output. Only `["text"]` is supported."""
    verbosity: Annotated[Any, refuse_unless(["medium"])] = None
    """Length of an answer. Only `medium` is supported, which changes nothing."""
    reasoning_effort: Annotated[Any, refuse_unless(["none"])] = None
    """Effort of a reasoning model. Only `none` is supported."""
    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None

    @field_validator("max_tokens")
    @classmethod
    def _must_be_one_limit(cls, value: int | None, checked: ValidationInfo) -> int | None:
        newer = checked.data.get("max_completion_tokens")
        if None not in (value, newer) and value != newer:
            raise PydanticCustomError(
                "conflict", "It differs from 'max_completion_tokens'; give only one of them"
            )
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _must_have_logprobs(cls, value: int | None, checked: ValidationInfo) -> int | None:
        if value is not None and not checked.data.get("logprobs"):
            raise PydanticCustomError("conflict", "It needs 'logprobs' to be true")
        return value

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def given_tools(self) -> list[dict[str, Any]]:
        """The tools as they were sent, because a chat template writes them as they are."""
        return cast("list[dict[str, Any]]", self.tools or [])


class FunctionCallRead(ResponseBody):
    name: str
    arguments: str
    """Arguments of the call in JSON, as the model has written them."""


class ToolCallRead(ResponseBody):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCallRead


class LogProbsRead(ResponseBody):
    content: list[TokenLogProbRead]
    refusal: None = None


class MessageRead(ResponseBody):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """Text of the answer. Null if the model has only called tools."""
    refusal: None = None
    tool_calls: list[ToolCallRead] | None = None


class ChatChoiceRead(ResponseBody):
    index: int
    message: MessageRead
    logprobs: LogProbsRead | None = None
    finish_reason: FinishReason


class ChatCompletionRead(ResponseBody):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    """`fp_` with the first digits of the sha256 of the adapter's weights, and with digits that
    change with its configuration and its base model. Without an adapter, those of the base
    model."""
    choices: list[ChatChoiceRead]
    usage: UsageRead


class SparseRead(ResponseBody):
    """An object whose null fields are left out."""

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class FunctionCallDelta(SparseRead):
    name: str | None = None
    arguments: str


class ToolCallDelta(SparseRead):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


class MessageDelta(SparseRead):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoiceRead(ResponseBody):
    index: int
    delta: MessageDelta
    logprobs: LogProbsRead | None = None
    finish_reason: FinishReason | None = None


class ChatChunkRead(ResponseBody):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoiceRead]
    usage: UsageRead | None = None
