"""What the API asks of the sampler, and what that answers. Both cross a Unix socket as JSON.

A connection carries one request. The API sends the length of an `Ask`, with the descriptors of the
adapter's files, and then the `Ask`. It reads one `Answer` a line until the sampler closes the
connection. Closing it earlier cancels the request.

The API treats every answer as hostile: it validates it here before it passes it on.
"""

import struct
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.core.job.child.training_events import Code, ShortText
from app.core.job.frozen import Frozen

HEAD = struct.Struct(">I")
"""Number of bytes of the request that follows. 0 asks only whether the sampler works, which it
answers with an empty line."""

MAX_ASK_BYTES = 8 * 1024**2
"""Maximum size of a request. It is several times what the API accepts as a JSON body, because some
numbers are longer here than clients have written them."""

MAX_ANSWER_BYTES = 2 * 1024**2
"""Maximum size of a line that answers: an answer that begins with the longest prompt."""

SOCKET_NAME = "socket"
"""Name of the sampler's socket in `Settings.sampler_dir`."""

ALIVE_INTERVAL_S = 5.0
"""Interval at which the sampler sends `Alive`, in seconds."""

MAX_SILENCE_S = 60.0
"""Time without any answer after which the sampler counts as hanging, in seconds. It is longer than
a new process takes to start."""

MAX_CHOICES = 4
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20

FinishReason = Literal["stop", "length", "tool_calls"]


class AdapterRef(Frozen):
    """The adapter of a request.

    Its weights and its `adapter_config.json` are the two descriptors that come with the request, in
    this order.
    """

    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    config_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ChatPrompt(Frozen):
    """Messages and tools in the form of chat templates, which that of the base model renders."""

    kind: Literal["chat"] = "chat"
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Literal["auto", "none", "forced"] = "auto"
    """`auto` looks for calls in the answers; the others do not. The tools are shown to the model in
    any case. With `forced`, an answer is the arguments of a call. Their schema is enough for that,
    so a template without a place for tools will do."""


class TextPrompt(Frozen):
    """A text, or its tokens, which the model goes on with."""

    kind: Literal["text"] = "text"
    text: str = ""
    tokens: tuple[int, ...] | None = None


class TextForm(Frozen):
    """What the text of an answer must be: JSON, by a schema if there is one."""

    json_schema: dict[str, Any] | None = None


class SamplingParameters(Frozen):
    """How the next token is chosen, and when an answer ends."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 for the most likely token each time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an answer; None for as many as the model's window holds."""
    stop: tuple[str, ...] = Field(default=(), max_length=MAX_STOPS)
    seed: int | None = None
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """By token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Number of the most likely tokens to tell with each token; None for no log-probabilities."""
    form: TextForm | None = None


class Ask(Frozen):
    """A request for answers."""

    project_id: str
    """What was read for one project is never used for another."""
    base_model: Path
    """Directory of the base model."""
    base_model_sha256: str
    adapter: AdapterRef | None = None
    prompt: Annotated[ChatPrompt | TextPrompt, Field(discriminator="kind")]
    choices: int = Field(default=1, ge=1, le=MAX_CHOICES)
    parameters: SamplingParameters = SamplingParameters()
    echoes: bool = False
    """Whether the answer begins with the prompt."""


class Alive(Frozen):
    """The sampler works, and the request waits or is being answered. May come at any time."""

    kind: Literal["alive"] = "alive"


class Accepted(Frozen):
    """The prompt is read, and the first token is chosen. Comes once, before the answers."""

    kind: Literal["accepted"] = "accepted"
    prompt_tokens: int
    cached_tokens: int
    """Tokens at the beginning of the prompt that had been read before."""


Byte = Annotated[int, Field(ge=0, le=255)]


class TokenLogProb(Frozen):
    """A token that could stand here, with the logarithm of its probability."""

    token: str
    """Its text; what is no whole character is U+FFFD."""
    logprob: float
    """Before temperature, penalties and top_p. -9999 if it cannot be chosen."""
    text_bytes: tuple[Byte, ...]
    """Its text in UTF-8, also if it is a part of a character."""


class ChosenLogProb(TokenLogProb):
    top: tuple[TokenLogProb, ...] = ()
    """The most likely tokens, most likely first."""


class ToolCall(Frozen):
    name: str
    arguments: str
    """A JSON object."""


class Delta(Frozen):
    """The next piece of an answer."""

    kind: Literal["delta"] = "delta"
    choice: int
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Whole calls."""
    logprobs: tuple[ChosenLogProb, ...] = ()


class Finished(Frozen):
    """An answer is complete."""

    kind: Literal["finished"] = "finished"
    choice: int
    reason: FinishReason
    tokens: int
    """Tokens of this answer."""


class Refused(Frozen):
    """The request is not answered, or not to the end. Nothing comes after it."""

    kind: Literal["refused"] = "refused"
    status: Literal[400, 429, 500, 503]
    code: Code
    message: ShortText
    param: Code | None = None
    retry_after_s: int | None = None
    """With 429: seconds after which it makes sense to ask again."""


Answer = Annotated[Alive | Accepted | Delta | Finished | Refused, Field(discriminator="kind")]
ANSWERS = TypeAdapter[Alive | Accepted | Delta | Finished | Refused](Answer)
