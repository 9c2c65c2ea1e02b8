"""Wire format of what chat completions and completions count and measure."""

from collections.abc import Sequence
from typing import Self

from pydantic import Field

from app.core.sampling.messages import ChosenLogProb, TokenLogProb
from app.schemas.bodies import ResponseBody


class PromptTokensDetails(ResponseBody):
    cached_tokens: int
    """Tokens at the beginning of the prompt that were read for an earlier request."""


class UsageRead(ResponseBody):
    prompt_tokens: int
    completion_tokens: int
    """Tokens of all answers together."""
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, *, prompt: int, cached: int, completion: int) -> Self:
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )


class TopLogProbRead(ResponseBody):
    token: str
    logprob: float
    """Natural logarithm of the token's probability, before temperature, penalties and top_p."""
    bytes: list[int]
    """Text of the token in UTF-8, also if it is a part of a character."""

    @classmethod
    def of(cls, measured: TokenLogProb) -> Self:
        return cls(token=measured.token, logprob=measured.logprob, bytes=list(measured.text_bytes))


class TokenLogProbRead(TopLogProbRead):
    top_logprobs: list[TopLogProbRead] = Field(default=[])

    @classmethod
    def list_of(cls, measured: Sequence[ChosenLogProb]) -> list[Self]:
        return [
            cls(
                token=each.token,
                logprob=each.logprob,
                bytes=list(each.text_bytes),
                top_logprobs=[TopLogProbRead.of(other) for other in each.top],
            )
            for each in measured
        ]
