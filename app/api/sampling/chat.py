"""Writes chat completions and their chunks."""

import json
from collections.abc import Iterator, Sequence

from app.api.sampling.writer import DONE, Writer, data
from app.core.ids import IdPrefix, new_id
from app.core.sampling.messages import (
    Accepted,
    ChosenLogProb,
    Delta,
    Finished,
    FinishReason,
    ToolCall,
)
from app.schemas.sampling.chat import (
    ChatChoiceRead,
    ChatChunkRead,
    ChatCompletionCreate,
    ChatCompletionRead,
    ChunkChoiceRead,
    FunctionCallDelta,
    FunctionCallRead,
    LogProbsRead,
    MessageDelta,
    MessageRead,
    ToolCallDelta,
    ToolCallRead,
)
from app.schemas.sampling.collected import CollectedChoice
from app.schemas.sampling.usage import TokenLogProbRead, UsageRead
from app.services.sampling.models import SamplingModel


class ChatWriter(Writer):
    """Writes a chat completion.

    Args:
        body: the request.
        model: see `Writer`.
        forced_tool: name of the function whose arguments each text is; None for usual answers.
    """

    def __init__(
        self, body: ChatCompletionCreate, model: SamplingModel, forced_tool: str | None
    ) -> None:
        super().__init__(model, body.choices, IdPrefix.CHAT_COMPLETION)
        self._forced_tool = forced_tool
        self._is_one_call = body.parallel_tool_calls is False
        self._has_usage = body.includes_usage
        self._has_logprobs = bool(body.logprobs)

    def take(self, answer: Accepted | Delta | Finished) -> None:
        super().take(answer)
        if self._is_one_call and isinstance(answer, Delta):
            del self.collected.choices[answer.choice].tool_calls[1:]

    def whole(self) -> ChatCompletionRead:
        return ChatCompletionRead(
            id=self._id,
            created=self._created,
            model=self._model.name,
            system_fingerprint=self._model.fingerprint,
            choices=[
                ChatChoiceRead(
                    index=index,
                    message=self._message(choice),
                    logprobs=self._logprobs(choice.logprobs),
                    finish_reason=self._reason(choice),
                )
                for index, choice in enumerate(self.collected.choices)
            ],
            usage=UsageRead.of(**self.collected.counts),
        )

    def write(self, answer: Accepted | Delta | Finished) -> Iterator[bytes]:
        if isinstance(answer, Accepted):
            self.take(answer)
            for index in range(len(self.collected.choices)):
                yield self._chunk(ChunkChoiceRead(index=index, delta=self._first_delta()))
        elif isinstance(answer, Finished):
            self.take(answer)
            reason = self._reason(self.collected.choices[answer.choice])
            yield self._chunk(
                ChunkChoiceRead(index=answer.choice, delta=MessageDelta(), finish_reason=reason)
            )
        else:
            calls = self.collected.choices[answer.choice].tool_calls
            known = len(calls)
            self.take(answer)
            delta = self._delta(answer.text, calls[known:], known)
            logprobs = self._logprobs(answer.logprobs)
            if delta != MessageDelta() or answer.logprobs:
                yield self._chunk(
                    ChunkChoiceRead(index=answer.choice, delta=delta, logprobs=logprobs)
                )

    def ending(self) -> Iterator[bytes]:
        if self._has_usage:
            yield self._chunk(usage=UsageRead.of(**self.collected.counts))
        yield DONE

    def _chunk(self, *choices: ChunkChoiceRead, usage: UsageRead | None = None) -> bytes:
        chunk = ChatChunkRead(
            id=self._id,
            created=self._created,
            model=self._model.name,
            system_fingerprint=self._model.fingerprint,
            choices=list(choices),
            usage=usage,
        )
        left_out = set[str]() if self._has_usage else {"usage"}
        return data(chunk.model_dump_json(exclude=left_out).encode())

    def _message(self, choice: CollectedChoice) -> MessageRead:
        calls, text = choice.tool_calls, choice.text
        if self._forced_tool is not None:
            calls, text = [ToolCall(name=self._forced_tool, arguments=text)], ""
        read = [
            ToolCallRead(
                id=new_id(IdPrefix.TOOL_CALL),
                function=FunctionCallRead(name=call.name, arguments=call.arguments),
            )
            for call in calls
        ]
        return MessageRead(content=text or (None if read else ""), tool_calls=read or None)

    def _first_delta(self) -> MessageDelta:
        if self._forced_tool is None:
            return MessageDelta(role="assistant", content="")
        call = _begin_call(0, ToolCall(name=self._forced_tool, arguments=""))
        return MessageDelta(role="assistant", tool_calls=[call])

    def _delta(self, text: str, calls: list[ToolCall], first: int) -> MessageDelta:
        if self._forced_tool is not None and text:
            more = ToolCallDelta(index=0, function=FunctionCallDelta(arguments=text))
            return MessageDelta(tool_calls=[more])
        begun = [_begin_call(index, call) for index, call in enumerate(calls, start=first)]
        return MessageDelta(content=text or None, tool_calls=begun or None)

    def _reason(self, choice: CollectedChoice) -> FinishReason:
        is_call = self._forced_tool is not None and choice.reason == "stop"
        return "tool_calls" if is_call and _is_json(choice.text) else choice.reason

    def _logprobs(self, measured: Sequence[ChosenLogProb]) -> LogProbsRead | None:
        if not self._has_logprobs:
            return None
        return LogProbsRead(content=TokenLogProbRead.list_of(measured))


def _is_json(arguments: str) -> bool:
    """Whether arguments are complete. They are not if a stop text has cut them off."""
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True


def _begin_call(index: int, call: ToolCall) -> ToolCallDelta:
    return ToolCallDelta(
        index=index,
        id=new_id(IdPrefix.TOOL_CALL),
        type="function",
        function=FunctionCallDelta(name=call.name, arguments=call.arguments),
    )
