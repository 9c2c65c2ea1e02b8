"""The stock client, strict about every answer, asks for completions of every kind."""

import json
from collections.abc import Callable
from typing import Any, Literal

import openai
import pytest
from openai.types import Completion, CompletionChoice

from app.core.db.tables import Job
from app.core.sampling.messages import Accepted, ChosenLogProb, Delta, Finished, ToolCall
from tests.standin_sampler import Asked, Said, StandInSampler
from tests.unit.app.api.sampling.stock_requests import (
    CHATS,
    COMPLETIONS,
    HI,
    RESPONSES,
    SAID,
    SCHEMA,
    STRICT_TOOL,
    TOOL,
    StockRequest,
    ask_of_messages,
    ask_of_text,
    without_defaults,
)

pytestmark = pytest.mark.only_sqlite


def check_asks(sampler: StandInSampler, expected: dict[str, Any]) -> None:
    """Check what the sampler was asked for a whole answer, and again for a stream."""
    assert [without_defaults(asked.ask) for asked in sampler.asked] == 2 * [expected]


def test_there_are_enough_requests() -> None:
    assert len(CHATS) + len(COMPLETIONS) + len(RESPONSES) >= 30


def test_chat_completions(
    strict: openai.OpenAI, sampler: StandInSampler, subtests: pytest.Subtests
) -> None:
    for name, request in CHATS.items():
        with subtests.test(name):
            sampler.asked.clear()
            check_chat(strict, request)
            check_asks(sampler, ask_of_messages(request))


def check_chat(strict: openai.OpenAI, asked: StockRequest) -> None:
    request: dict[str, Any] = {"model": "tiny", "messages": HI} | asked.fields
    whole = strict.chat.completions.create(**request)
    chunks = list(
        strict.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )

    n, has_logprobs = request.get("n") or 1, bool(request.get("logprobs"))
    assert [choice.message.content for choice in whole.choices] == [SAID] * n
    assert {choice.finish_reason for choice in whole.choices} == {"stop"}
    assert [bool(choice.logprobs) for choice in whole.choices] == [has_logprobs] * n
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 3 * n)
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 1
    assert whole.id.startswith("chatcmpl-")
    assert whole.system_fingerprint == f"fp_{'0' * 16}"
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [(chunk.choices[0].index, chunk.choices[0].delta) for chunk in chunks[:-1]]
    for index in range(n):
        told = "".join(delta.content or "" for choice, delta in pieces if choice == index)
        assert told == SAID
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions(
    strict: openai.OpenAI, sampler: StandInSampler, subtests: pytest.Subtests
) -> None:
    for name, request in COMPLETIONS.items():
        with subtests.test(name):
            sampler.asked.clear()
            check_completion(strict, request)
            check_asks(sampler, ask_of_text(request))


class ChunkChoice(CompletionChoice):
    """A choice in a chunk as OpenAI sends it. The client has only the type of a whole answer."""

    finish_reason: Literal["stop", "length"] | None  # pyright: ignore[reportIncompatibleVariableOverride]


class Chunk(Completion):
    choices: list[ChunkChoice]  # pyright: ignore[reportIncompatibleVariableOverride]


def stream_completion(strict: openai.OpenAI, request: dict[str, Any]) -> list[Chunk]:
    """The chunks, each of them checked but for a `finish_reason` that is null."""
    body, stream = request | {"stream": True}, openai.Stream[Chunk]
    return list(
        strict.post("/completions", body=body, cast_to=Chunk, stream=True, stream_cls=stream)
    )


def check_completion(strict: openai.OpenAI, asked: StockRequest) -> None:
    request: dict[str, Any] = {"model": "tiny", "prompt": "ahoy to you"} | asked.fields
    whole = strict.completions.create(**request)
    chunks = stream_completion(strict, request)

    n = request.get("n") or 1
    assert [choice.text for choice in whole.choices] == [SAID] * n
    assert whole.id.startswith("cmpl-")
    for index in range(n):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.text for choice in mine) == SAID
        assert [choice.finish_reason for choice in mine] == [None, None, None, "stop"]


@pytest.mark.usefixtures("sampler")
def test_the_strict_client_refuses_chunks_as_openai_sends_them(strict: openai.OpenAI) -> None:
    # Once it accepts them, `ChunkChoice` and the sentence on it in docs/chat.md can go.
    with pytest.raises(openai.APIResponseValidationError) as caught:
        list(strict.completions.create(model="tiny", prompt="ahoy to you", stream=True))

    assert "finish_reason" in str(caught.value.__cause__)


def test_responses(
    strict: openai.OpenAI, sampler: StandInSampler, subtests: pytest.Subtests
) -> None:
    for name, request in RESPONSES.items():
        with subtests.test(name):
            sampler.asked.clear()
            check_response(strict, request)
            check_asks(sampler, ask_of_messages(request))


def check_response(strict: openai.OpenAI, asked: StockRequest) -> None:
    request: dict[str, Any] = {"model": "tiny", "input": "ahoy to you"} | asked.fields
    whole = strict.responses.create(**request)
    events: list[Any] = list(strict.responses.create(**request, stream=True))

    assert whole.output_text == SAID
    assert whole.status == "completed"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 6
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events if not event.type.endswith("text.delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == SAID
    assert events[-1].response.output_text == SAID


def answering(*answers: Delta | Finished) -> Callable[[Asked], Any]:
    def script(_: Asked) -> Any:
        said: list[Said] = [Accepted(prompt_tokens=1, cached_tokens=0), *answers]
        return iter(said)

    return script


def cut_into_tokens(*tokens: bytes) -> tuple[ChosenLogProb, ...]:
    return tuple(
        ChosenLogProb(
            token=token.decode(errors="replace"), logprob=-1.0, text_bytes=tuple(token), top=()
        )
        for token in tokens
    )


def test_the_offsets_of_tokens_that_are_parts_of_characters(
    strict: openai.OpenAI, sampler: StandInSampler
) -> None:
    flame = "\N{FIRE}".encode()
    first = cut_into_tokens(b"a", flame[:2], flame[2:], b"bc")
    second = cut_into_tokens(flame[:3], flame[3:], b"d")
    sampler.script = answering(
        Delta(choice=0, text="a\N{FIRE}bc", logprobs=first),
        Delta(choice=0, text="\N{FIRE}d", logprobs=second),
        Finished(choice=0, reason="stop", tokens=7),
    )
    request: dict[str, Any] = {"model": "tiny", "prompt": "ahoy", "logprobs": 0}

    whole = strict.completions.create(**request).choices[0].logprobs
    chunks = stream_completion(strict, request)

    told = [chunk.choices[0].logprobs for chunk in chunks[:-1]]
    assert whole is not None
    assert whole.text_offset == [0, 1, 1, 2, 4, 4, 5]
    assert [logprobs and logprobs.text_offset for logprobs in told] == [[0, 1, 1, 2], [4, 4, 5]]


def test_the_log_probabilities_of_an_empty_answer_are_an_empty_list(
    strict: openai.OpenAI, sampler: StandInSampler
) -> None:
    sampler.script = answering(Finished(choice=0, reason="stop", tokens=1))

    chat = strict.chat.completions.create(model="tiny", messages=HI, logprobs=True)
    completion = strict.completions.create(model="tiny", prompt="ahoy", logprobs=1)

    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content == []
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens == []


def test_calls_of_tools(strict: openai.OpenAI, sampler: StandInSampler) -> None:
    calls = [ToolCall(name="look", arguments=f'{{"a": {number}}}') for number in (1, 2)]
    sampler.script = answering(
        Delta(choice=0, tool_calls=(calls[0],)),
        Delta(choice=0, tool_calls=(calls[1],)),
        Finished(choice=0, reason="tool_calls", tokens=9),
    )
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "tools": [TOOL]}

    whole = strict.chat.completions.create(**asked).choices[0]
    chunks = list(strict.chat.completions.create(**asked, stream=True))
    one = strict.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]

    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    told: list[Any] = whole.message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in told] == [
        ("look", '{"a": 1}'),
        ("look", '{"a": 2}'),
    ]
    assert len({call.id for call in told}) == 2
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
    assert [(delta.index, delta.function and delta.function.arguments) for delta in deltas] == [
        (0, '{"a": 1}'),
        (1, '{"a": 2}'),
    ]
    assert len(one.message.tool_calls or ()) == 1


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "look"}}], ids=str
)
def test_a_call_that_is_forced(strict: openai.OpenAI, sampler: StandInSampler, choice: Any) -> None:
    sampler.script = answering(
        Delta(choice=0, text='{"a"'),
        Delta(choice=0, text=": 1}"),
        Finished(choice=0, reason="stop", tokens=4),
    )
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": HI,
        "tools": [STRICT_TOOL],
        "tool_choice": choice,
    }

    whole = strict.chat.completions.create(**asked).choices[0]
    with strict.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]

    for each in (whole, streamed):
        (call,) = each.message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"a": 1})
        assert each.finish_reason == "tool_calls"
        assert not each.message.content
    forced = StockRequest(
        {}, {"form": {"json_schema": SCHEMA}}, prompt={"tools": [STRICT_TOOL], "tool_choice": "forced"}
    )
    check_asks(sampler, ask_of_messages(forced))


def test_an_answer_that_is_cut_off(strict: openai.OpenAI, sampler: StandInSampler) -> None:
    response = strict.responses.create(model="tiny", input="ahoy to you", max_output_tokens=2)

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    chat = strict.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=2,
    )
    assert chat.choices[0].finish_reason == "length"


def test_what_the_sampler_is_asked(
    strict: openai.OpenAI, sampler: StandInSampler, tuned: Job
) -> None:
    assert tuned.fine_tuned_model is not None
    strict.chat.completions.create(
        model=tuned.fine_tuned_model,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "assistant", "content": None},
            {"role": "user", "content": "a"},
        ],
        temperature=0.5,
        logprobs=True,
        max_completion_tokens=4,
        logit_bias={"7": -1},
        stop="x",
        seed=3,
    )

    asked = sampler.asked[0].ask
    assert asked.prompt.model_dump()["messages"] == (
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "a"},
    )
    assert asked.parameters.model_dump(exclude_defaults=True) == {
        "temperature": 0.5,
        "max_tokens": 4,
        "stop": ("x",),
        "seed": 3,
        "logit_bias": {7: -1.0},
        "top_logprobs": 0,
    }


def test_the_smallest_nucleus_is_the_most_likely_token(
    strict: openai.OpenAI, sampler: StandInSampler
) -> None:
    strict.chat.completions.create(model="tiny", messages=HI, top_p=0, temperature=1.5)
    response = strict.responses.create(model="tiny", input="ahoy to you", top_p=0)

    asked = [each.ask.parameters for each in sampler.asked]
    assert [(each.temperature, each.top_p) for each in asked] == [(0, 1)] * 2
    assert response.top_p == 0
