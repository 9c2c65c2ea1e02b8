"""Wire format of completions, OpenAI's older API, which goes on with a text."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from app.core.dataset.rows.fields import is_list
from app.schemas.bodies import ResponseBody
from app.schemas.sampling.fields import (
    UNSUPPORTED,
    CompletionParameters,
    Unsupported,
    refuse_unless,
)
from app.schemas.sampling.usage import UsageRead

DEFAULT_MAX_TOKENS = 16
"""Maximum number of tokens of an answer where the request has none, as at OpenAI."""
_MAX_LOGPROBS = 5
_MAX_TOKEN = 10**9


def _one_prompt(value: Any) -> Any:
    match value:
        case [str() as one] | [[*_] as one]:
            value = one
        case [str() | [*_], *_]:
            raise PydanticCustomError(
                UNSUPPORTED, "Several prompts are not supported: send one a request"
            )
        case _:
            pass
    is_tokens = is_list(value) and value and all(map(_is_token, value))
    if not isinstance(value, str) and not is_tokens:
        raise PydanticCustomError("bad_prompt", "Give a text, or a list of the ids of its tokens")
    return value


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_TOKEN


_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    ]
}


class CompletionCreate(CompletionParameters):
    prompt: Annotated[Any, AfterValidator(_one_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
    """Text that the model goes on with, or the ids of its tokens. One prompt is allowed."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an answer, 16 by default."""
    logprobs: int | None = Field(default=None, ge=0, le=_MAX_LOGPROBS)
    """Number of the most likely tokens that are told with each token. Null tells none, and no
    log-probabilities at all."""
    echo: bool | None = None
    """Whether an answer begins with the prompt."""
    best_of: Annotated[Any, refuse_unless([1])] = None
    """Number of answers of which the best is sent. Only 1 is supported."""
    suffix: Unsupported = None


class CompletionLogProbs(ResponseBody):
    """The log-probabilities of an answer, one item a token in each list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Place in the text where each token begins, in characters."""


class CompletionChoiceRead(ResponseBody):
    index: int
    text: str
    logprobs: CompletionLogProbs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    """Why the answer ended. Null in the chunks of a stream before the last one."""


class CompletionRead(ResponseBody):
    """A completion, or a chunk of its stream, which has the same form."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoiceRead]
    usage: UsageRead | None = None
