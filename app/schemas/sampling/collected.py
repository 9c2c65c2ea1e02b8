"""Puts the answers of the sampler to one request together."""

from dataclasses import dataclass, field

from app.core.sampling.messages import (
    Accepted,
    ChosenLogProb,
    Delta,
    Finished,
    FinishReason,
    ToolCall,
)


@dataclass(slots=True)
class CollectedChoice:
    """One of the answers to a request, as far as it is known."""

    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    logprobs: list[ChosenLogProb] = field(default_factory=list[ChosenLogProb])
    reason: FinishReason = "stop"
    tokens: int = 0


class Collected:
    """All answers to a request, as far as they are known.

    Args:
        choices: number of answers.

    Attributes:
        prompt_tokens: number of tokens of the prompt.
        cached_tokens: number of tokens at its beginning that had been read before.
    """

    def __init__(self, choices: int) -> None:
        self.choices = [CollectedChoice() for _ in range(choices)]
        self.prompt_tokens = self.cached_tokens = 0

    def take(self, answer: Accepted | Delta | Finished) -> None:
        """Add what the sampler has answered."""
        if isinstance(answer, Accepted):
            self.prompt_tokens = answer.prompt_tokens
            self.cached_tokens = answer.cached_tokens
            return
        choice = self.choices[answer.choice]
        if isinstance(answer, Finished):
            choice.reason, choice.tokens = answer.reason, answer.tokens
        else:
            choice.text += answer.text
            choice.tool_calls += answer.tool_calls
            choice.logprobs += answer.logprobs

    @property
    def completion_tokens(self) -> int:
        """Number of tokens of all answers together."""
        return sum(choice.tokens for choice in self.choices)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of tokens, by the names of the arguments of `UsageRead.of`."""
        return {
            "prompt": self.prompt_tokens,
            "cached": self.cached_tokens,
            "completion": self.completion_tokens,
        }
