"""Writes responses and the named events of their streams."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from app.api.sampling.writer import Writer
from app.core.errors import ServiceError
from app.core.ids import IdPrefix, new_id
from app.core.sampling.messages import Accepted, Delta, Finished
from app.schemas.sampling.responses import (
    IncompleteDetails,
    OutputMessageRead,
    OutputTextRead,
    ResponseCreate,
    ResponseRead,
    ResponseUsageRead,
    Status,
    TextRead,
)
from app.schemas.sampling.usage import TokenLogProbRead
from app.services.sampling.models import SamplingModel


class ResponseWriter(Writer):
    """Writes a response, which has one message with one text."""

    def __init__(self, body: ResponseCreate, model: SamplingModel) -> None:
        super().__init__(model, 1, IdPrefix.RESPONSE)
        self._body = body
        self._message_id = new_id(IdPrefix.MESSAGE)
        self._sequence_number = 0
        self._place: dict[str, Any] = {"item_id": self._message_id, **_FIRST_ITEM, **_FIRST_PART}

    def whole(self) -> ResponseRead:
        return self._response(self._status)

    def write(self, answer: Accepted | Delta | Finished) -> Iterator[bytes]:
        self.take(answer)
        if isinstance(answer, Accepted):
            begun = self._response("in_progress")
            item = OutputMessageRead(id=self._message_id, status="in_progress", content=[])
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)
            yield self._event("response.output_item.added", **_FIRST_ITEM, item=item)
            part = OutputTextRead(text="")
            yield self._event("response.content_part.added", **self._place, part=part)
        elif isinstance(answer, Delta) and (answer.text or answer.logprobs):
            logprobs = _dump_all(TokenLogProbRead.list_of(answer.logprobs))
            yield self._event(
                "response.output_text.delta", **self._place, delta=answer.text, logprobs=logprobs
            )

    def ending(self) -> Iterator[bytes]:
        part, whole = self._text(), self.whole()
        yield self._event(
            "response.output_text.done",
            **self._place,
            text=part.text,
            logprobs=_dump_all(part.logprobs),
        )
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", **_FIRST_ITEM, item=whole.output[0])
        yield self._event(f"response.{self._status}", response=whole)

    def failure(self, error: ServiceError) -> bytes:
        return self._event("error", code=error.code, message=str(error), param=error.param)

    @property
    def _status(self) -> Status:
        """Status of the response once it has ended."""
        is_cut_off = self.collected.choices[0].reason == "length"
        return "incomplete" if is_cut_off else "completed"

    def _event(self, kind: str, **fields: Any) -> bytes:
        shown = {
            name: value.model_dump(mode="json", by_alias=True)
            if isinstance(value, BaseModel)
            else value
            for name, value in fields.items()
        }
        event = {"type": kind, "sequence_number": self._sequence_number, **shown}
        self._sequence_number += 1
        content = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {content}\n\n".encode()

    def _text(self) -> OutputTextRead:
        choice = self.collected.choices[0]
        return OutputTextRead(text=choice.text, logprobs=TokenLogProbRead.list_of(choice.logprobs))

    def _response(self, status: Status) -> ResponseRead:
        body, output, usage = self._body, list[OutputMessageRead](), None
        if status != "in_progress":
            output = [OutputMessageRead(id=self._message_id, status=status, content=[self._text()])]
            usage = ResponseUsageRead.of(**self.collected.counts)
        given_format = body.text and body.text.format
        return ResponseRead(
            id=self._id,
            created_at=self._created,
            status=status,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self._model.name,
            output=output,
            system_fingerprint=self._model.fingerprint,
            temperature=1.0 if body.temperature is None else body.temperature,
            text=TextRead(
                format=given_format.model_dump(exclude_none=True, by_alias=True)
                if given_format
                else {"type": "text"}
            ),
            tool_choice=body.tool_choice or "auto",
            top_p=1.0 if body.top_p is None else body.top_p,
            usage=usage,
            metadata=body.metadata or {},
        )


_FIRST_ITEM: dict[str, Any] = {"output_index": 0}
_FIRST_PART: dict[str, Any] = {"content_index": 0}


def _dump_all(items: list[TokenLogProbRead]) -> list[dict[str, Any]]:
    return [item.model_dump(mode="json") for item in items]
