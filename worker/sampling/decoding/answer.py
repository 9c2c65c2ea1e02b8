"""One answer in the making: what it has, and when it ends.

Dimension key:
    V  vocabulary
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from app.core.sampling.messages import Delta, Finished, FinishReason
from worker.sampling.decoding.answer_text import AnswerText
from worker.sampling.decoding.json_form import JsonGrammar
from worker.sampling.decoding.logprobs import LogProbs
from worker.sampling.decoding.next_token import TokenChooser
from worker.sampling.decoding.text.told import Told

_MOST_LOGPROBS = 64
"""Maximum number of tokens whose log-probabilities are told in one message. Text that was held back
may come with those of thousands of tokens, too many for `MAX_ANSWER_BYTES`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an answer ends at the latest."""

    stop_tokens: Collection[int]
    max_tokens: int


class SampledAnswer:
    """An answer whose tokens are drawn. It implements `worker.sampling.decoding.choice.Choice`."""

    def __init__(
        self,
        index: int,
        *,
        chooser: TokenChooser,
        text: AnswerText,
        limits: Limits,
        grammar: JsonGrammar | None = None,
        logprobs: LogProbs | None = None,
        echo: str = "",
    ) -> None:
        """Begin an answer.

        Args:
            index: number of the answer among those to the same request.
            chooser: chooses its tokens.
            text: makes text of them.
            limits: where it ends at the latest.
            grammar: says which tokens may be chosen; None for all of them.
            logprobs: tells how likely its tokens were; None if nobody asks.
            echo: what the text begins with, which the model has not written.
        """
        self._index = index
        self._chooser = chooser
        self._text = text
        self._limits = limits
        self._grammar = grammar
        self._logprobs = logprobs
        self._echo = echo
        self._tokens = 0
        self._has_calls = False

    def take(self, logits_V: Tensor) -> tuple[int | None, list[Delta | Finished]]:
        """Choose the next token: see `Choice.take`."""
        logits = logits_V.numpy(force=True)
        token = self._chooser.choose(logits, self._grammar.allowed() if self._grammar else None)
        self._tokens += 1
        if token in self._limits.stop_tokens:
            return None, self._finish("stop", self._text.end())
        begin = self._text.complete
        told = self._text.add(token)
        if self._logprobs:
            self._logprobs.add(logits, token, begin=begin, end=self._text.written)
        if self._text.is_stopped:
            return None, self._finish("stop", told)
        if self._grammar:
            self._grammar.take(token)
        if self._grammar and self._grammar.is_complete:
            return None, self._finish("stop", told + self._text.end())
        if self._tokens >= self._limits.max_tokens:
            return None, self._finish("length", told + self._text.end())
        return token, self._tell(told)

    def _tell(self, told: Told) -> list[Delta | Finished]:
        text, self._echo = self._echo + told.text, ""
        logprobs = ()
        if self._logprobs:
            logprobs = self._logprobs.tell(end=self._text.told, is_cut=self._text.is_stopped)
        if told.calls and not told.text:
            logprobs = ()  # of the tokens of the calls
        self._has_calls |= bool(told.calls)
        if not (text or told.calls or logprobs):
            return []
        index, most = self._index, _MOST_LOGPROBS
        first = Delta(choice=index, text=text, tool_calls=told.calls, logprobs=logprobs[:most])
        others = range(most, len(logprobs), most)
        return [
            first,
            *(Delta(choice=index, logprobs=logprobs[begin : begin + most]) for begin in others),
        ]

    def _finish(self, reason: FinishReason, told: Told) -> list[Delta | Finished]:
        last = self._tell(told)
        if reason == "stop" and self._has_calls:
            reason = "tool_calls"
        return [*last, Finished(choice=self._index, reason=reason, tokens=self._tokens)]
