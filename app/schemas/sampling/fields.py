"""What the three kinds of requests for completions share, and what none of them supports."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from app.core.sampling.messages import MAX_STOPS, SamplingParameters, TextForm
from app.schemas.bodies import RequestBody

UNSUPPORTED = "unsupported_parameter"

_MAX_SEED = 2**63
_MAX_STOP_LENGTH = 1000
_MAX_BIASES = 100


def _refuse(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError(UNSUPPORTED, "This is not supported here; leave it out")
    return value


def refuse_unless(harmless: Sequence[Any]) -> AfterValidator:
    """Refuse every value of a parameter but null and those that ask for what is done anyway."""

    def check(value: Any) -> Any:
        if value is not None and value not in harmless:
            raise PydanticCustomError(
                UNSUPPORTED,
                "Only {harmless} is supported here; leave it out",
                {"harmless": " or ".join(map(repr, harmless))},
            )
        return value

    return AfterValidator(check)


Unsupported = Annotated[
    Any,
    AfterValidator(_refuse),
    Field(description="This part of OpenAI's API is not supported: it must be null or absent."),
]
Ignored = Annotated[Any, Field(description="Accepted for OpenAI's clients, and has no effect.")]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS},
        {"type": "null"},
    ],
    "default": None,
}

Stop = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=_MAX_STOP_LENGTH)]] | None,
    Field(max_length=MAX_STOPS),
    BeforeValidator(_as_list),
    WithJsonSchema(_STOP_SCHEMA),
]


class FormatCreate(RequestBody):
    """Format of an answer. A subclass adds a schema, by the name that its API has for it."""

    type: Literal["text", "json_object", "json_schema"]
    """Format of an answer: any text, a JSON object, or JSON that fits a schema."""

    @field_validator("json_schema", "schema_", check_fields=False)
    @classmethod
    def _must_fit_type(cls, value: Any, checked: ValidationInfo) -> Any:
        kind = checked.data.get("type")
        if kind is not None and (kind == "json_schema") != (value is not None):
            raise PydanticCustomError(
                "misplaced_schema", "Give a schema with the type 'json_schema', and only with it"
            )
        return value


class PromptCacheOptions(RequestBody):
    """Options of OpenAI's prompt cache. None has an effect here."""

    mode: Ignored = None
    ttl: Ignored = None
    prewarm: Annotated[Any, refuse_unless([False])] = None
    """Whether the prompt is only read, and not answered, which is not supported."""
    comparison_response_id: Unsupported = None


class StreamOptions(RequestBody):
    include_usage: bool | None = None
    """Whether the stream ends with a chunk that has the usage of the whole request."""
    include_obfuscation: Ignored = None


class SamplingCreate(RequestBody):
    """What every request for completions has."""

    model: str = Field(min_length=1, max_length=512)
    """Model that answers: a base model by its id, alias or hub repository, a tuned model, or one of
    its checkpoints, `MODEL:ckpt-step-N`. While a job trains, the sampler answers only with
    TUNERY_SAMPLING=shared."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Temperature of sampling, 1 by default. 0 takes the most likely token each time."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Only the most likely tokens that together have this probability are drawn from. 0 takes the
    most likely token each time."""
    stream: bool | None = None
    """Whether the answer is sent piece by piece, as server-sent events."""
    store: Annotated[Any, refuse_unless([False])] = None
    """Whether the answer is kept. Nothing is kept, so this must not be true."""
    metadata: dict[str, str] | None = None
    """Labels of your own. They are not kept."""
    prompt_cache_key: Ignored = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: ServiceTier | None = None
    """Accepted for OpenAI's clients, and has no effect."""
    user: Ignored = None
    moderation: Unsupported = None

    @field_validator("stream_options", check_fields=False)
    @classmethod
    def _must_have_stream(cls, value: Any, checked: ValidationInfo) -> Any:
        if value is not None and not checked.data.get("stream", True):
            raise PydanticCustomError("conflict", "It needs 'stream' to be true")
        return value

    @property
    def drawing(self) -> dict[str, float | None]:
        """The parameters by which the sampler draws tokens."""
        if self.top_p == 0:  # which leaves the most likely token alone, as this temperature does
            return {"temperature": 0.0}
        return {"temperature": self.temperature, "top_p": self.top_p}


class CompletionParameters(SamplingCreate):
    """What requests for chat completions and for completions share."""

    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Amount that the logit of a token falls for each time that the answer has it."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Amount that the logit of a token falls if the answer has it."""
    logit_bias: (
        dict[
            Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
            Annotated[float, Field(ge=-100, le=100)],
        ]
        | None
    ) = Field(default=None, max_length=_MAX_BIASES)
    """Amounts that are added to logits, by the id of the token."""
    n: int | None = Field(default=None, ge=1, le=4)
    """Number of answers, 1 by default."""
    seed: int | None = Field(default=None, ge=-_MAX_SEED, lt=_MAX_SEED)
    """Random seed. The same request and seed give the same text on the same machine, with the same
    number of threads."""
    stop: Stop = None
    """A text, or up to four, before which an answer ends."""
    stream_options: StreamOptions | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether the stream has to end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_parameters(
        self, *, max_tokens: int | None, top_logprobs: int | None, form: TextForm | None = None
    ) -> SamplingParameters:
        """The parameters for the sampler, with its defaults for what the request leaves out."""
        given = {
            **self.drawing,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "seed": self.seed,
            "max_tokens": max_tokens,
            "top_logprobs": top_logprobs,
            "form": form,
            "stop": self.stop,
        }
        bias = {int(token): amount for token, amount in (self.logit_bias or {}).items()}
        return SamplingParameters.model_validate(
            {name: value for name, value in given.items() if value is not None}
            | {"logit_bias": bias}
        )
