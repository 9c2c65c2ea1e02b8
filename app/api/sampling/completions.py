"""Writes completions and the chunks of their streams, which have the same form."""

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
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


class _TextOffsets:
    """Finds where the tokens of an answer begin in its text, in characters."""

    def __init__(self) -> None:
        # Tokens may be parts of characters, which count once their last byte is there.
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._end = 0

    def of(self, tokens: Sequence[ChosenLogProb]) -> list[int]:
        """Offsets of the next tokens. One within a character begins where that does."""
        offsets = list[int]()
        for token in tokens:
            offsets.append(self._end)
            self._end += len(self._decoder.decode(bytes(token.text_bytes)))
        return offsets


class CompletionWriter(Writer):
    """Writes a completion."""

    def __init__(self, body: CompletionCreate, model: SamplingModel) -> None:
        super().__init__(model, body.choices, IdPrefix.COMPLETION)
        self._has_usage = body.includes_usage
        self._has_logprobs = body.logprobs is not None
        self._offsets = [_TextOffsets() for _ in range(body.choices)]

    def whole(self) -> CompletionRead:
        choices = [
            CompletionChoiceRead(
                index=index,
                text=choice.text,
                logprobs=self._logprobs(index, choice.logprobs),
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
            logprobs = self._logprobs(answer.choice, answer.logprobs)
            if answer.text or answer.logprobs:
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

    def _logprobs(self, index: int, measured: Sequence[ChosenLogProb]) -> CompletionLogProbs | None:
        """The log-probabilities of the next tokens of an answer, if they are wanted."""
        if not self._has_logprobs:
            return None
        return CompletionLogProbs(
            tokens=[each.token for each in measured],
            token_logprobs=[each.logprob for each in measured],
            top_logprobs=[{other.token: other.logprob for other in each.top} for each in measured],
            text_offset=self._offsets[index].of(measured),
        )


def _reason(reason: str) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"
