"""Writes completions and the chunks of their streams, which have the same form."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal

from app.api.sampling.writer import DONE, Writer, data
from app.core.ids import IdPrefix
from app.core.sampling.messages import Accepted, ChosenLogProb, Delta, Finished
from app.schemas.sampling.completions import (
    CompletionChoiceRead,
    CompletionCreate,
    CompletionLogProbs,
    CompletionRead,
)
from app.schemas.sampling.usage import UsageRead
from app.services.sampling.models import SamplingModel


class CompletionWriter(Writer):
    """Writes a completion."""

    def __init__(self, body: CompletionCreate, model: SamplingModel) -> None:
        super().__init__(model, body.choices, IdPrefix.COMPLETION)
        self._has_usage = body.includes_usage

    def whole(self) -> CompletionRead:
        choices = [
            CompletionChoiceRead(
                index=index,
                text=choice.text,
                logprobs=_logprobs(choice.logprobs),
                finish_reason=_reason(choice.reason),
            )
            for index, choice in enumerate(self.collected.choices)
        ]
        return self._completion(choices, UsageRead.of(**self.collected.counts))

    def write(self, answer: Accepted | Delta | Finished) -> Iterator[bytes]:
        if isinstance(answer, Finished):
            reason = _reason(answer.reason)
            yield self._chunk(
                CompletionChoiceRead(index=answer.choice, text="", finish_reason=reason)
            )
        elif isinstance(answer, Delta):
            before = self.collected.choices[answer.choice].logprobs
            logprobs = _logprobs(answer.logprobs, sum(len(each.token) for each in before))
            if answer.text or logprobs:
                yield self._chunk(
                    CompletionChoiceRead(index=answer.choice, text=answer.text, logprobs=logprobs)
                )
        self.take(answer)

    def ending(self) -> Iterator[bytes]:
        if self._has_usage:
            yield self._chunk(usage=UsageRead.of(**self.collected.counts))
        yield DONE

    def _chunk(self, *choices: CompletionChoiceRead, usage: UsageRead | None = None) -> bytes:
        left_out = set[str]() if self._has_usage else {"usage"}
        chunk = self._completion(choices, usage)
        return data(chunk.model_dump_json(exclude=left_out).encode())

    def _completion(
        self, choices: Sequence[CompletionChoiceRead], usage: UsageRead | None
    ) -> CompletionRead:
        return CompletionRead(
            id=self._id,
            created=self._created,
            model=self._model.name,
            system_fingerprint=self._model.fingerprint,
            choices=list(choices),
            usage=usage,
        )


def _logprobs(measured: Sequence[ChosenLogProb], offset: int = 0) -> CompletionLogProbs | None:
    """The log-probabilities of tokens, the first of which begins at `offset`."""
    if not measured:
        return None
    tokens = [each.token for each in measured]
    ends = accumulate(map(len, tokens), initial=offset)
    return CompletionLogProbs(
        tokens=tokens,
        token_logprobs=[each.logprob for each in measured],
        top_logprobs=[{other.token: other.logprob for other in each.top} for each in measured],
        text_offset=[end for end, _ in zip(ends, tokens, strict=False)],
    )


def _reason(reason: str) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"
