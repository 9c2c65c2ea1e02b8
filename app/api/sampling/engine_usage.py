"""Counts the tokens of an answer that an engine sends, while it passes through."""

import json
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from app.api.metrics import Sampled
from app.core.sampling.messages import Accepted, Delta, Finished

_END_BYTES = 64 * 1024
"""How much of the end of an answer is kept to be read: the usage comes last, or nearly."""

_USAGE = b'"usage"'
"""Within a text of the answer, these quotes would have backslashes before them."""


class _Details(BaseModel):
    cached_tokens: int | None = Field(default=None, ge=0)


class _Usage(BaseModel):
    """The usage of OpenAI's three APIs."""

    prompt: int = Field(ge=0, validation_alias=AliasChoices("prompt_tokens", "input_tokens"))
    completion: int = Field(
        ge=0, validation_alias=AliasChoices("completion_tokens", "output_tokens")
    )
    details: _Details | None = Field(
        default=None,
        validation_alias=AliasChoices("prompt_tokens_details", "input_tokens_details"),
    )


class EngineUsage:
    """What an engine says of the tokens of one answer. The clock runs from now on.

    Args:
        is_stream: whether the answer comes piece by piece, so that its first piece has a time.
    """

    def __init__(self, *, is_stream: bool) -> None:
        self._sampled = Sampled()
        self._is_stream = is_stream
        self._end = bytearray()

    def take(self, chunk: bytes) -> None:
        """Read a piece of the answer."""
        if self._is_stream:
            self._sampled.take(Delta(choice=0))
        self._end += chunk
        del self._end[:-_END_BYTES]

    def sampled(self) -> Sampled | None:
        """The tokens, once all of the answer is there. None if the engine says nothing of them."""
        usage = self._find()
        if usage is None:
            return None
        cached = usage.details and usage.details.cached_tokens
        self._sampled.take(Accepted(prompt_tokens=usage.prompt, cached_tokens=cached or 0))
        self._sampled.take(Finished(choice=0, reason="stop", tokens=usage.completion))
        return self._sampled

    def _find(self) -> _Usage | None:
        start = self._end.rfind(_USAGE)
        if start < 0:
            return None
        text = self._end[start + len(_USAGE) :].decode("utf-8", "replace")
        try:
            usage: Any = json.JSONDecoder().raw_decode(text.lstrip(" \t\r\n:"))[0]
            return _Usage.model_validate(usage)
        except (ValueError, RecursionError, ValidationError):
            return None
