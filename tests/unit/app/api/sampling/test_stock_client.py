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

pytestmark = pytest.mark.only_sqlite

HI: list[Any] = [{"role": "user", "content": "ahoy to you"}]
SAID = "ahoy to you "
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LOOK: dict[str, Any] = {"name": "look", "parameters": SCHEMA}
TOOL = {"type": "function", "function": LOOK}
STRICT_TOOL = {"type": "function", "function": LOOK | {"strict": True}}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(150)}}

CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, *HI]},
    "several turns": {
        "messages": [*HI, {"role": "assistant", "content": "Ahoy.", "refusal": None}, *HI]
    },
    "an earlier answer that is empty": {
        "messages": [*HI, {"role": "assistant", "content": ""}, *HI]
    },
    "an earlier answer that is null": {
        "messages": [*HI, {"role": "assistant", "content": None, "annotations": []}, *HI]
    },
    "parts": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "ahoy ",
                        "prompt_cache_breakpoint": {"mode": "explicit"},
                    },
                    {"type": "text", "text": "to you"},
                ],
            }
        ]
    },
    "greedy": {"temperature": 0},
    "nucleus": {"temperature": 1.5, "top_p": 0.5},
    "smallest nucleus": {"top_p": 0},
    "limit": {"max_tokens": 10},
    "newer limit": {"max_completion_tokens": 10},
    "both limits": {"max_completion_tokens": 10, "max_tokens": 10},
    "stop": {"stop": "\n"},
    "stops": {"stop": ["a", "b", "c", "d"]},
    "seed": {"seed": -7},
    "answers": {"n": 4},
    "penalties": {"frequency_penalty": -2, "presence_penalty": 0.5},
    "bias": {"logit_bias": {"50256": -100, "7": 1}},
    "logprobs": {"logprobs": True},
    "top logprobs": {"logprobs": True, "top_logprobs": 3},
    "tools": {"model": "tiny", "tools": [TOOL], "parallel_tool_calls": True},
    "tools, not to be called": {"tools": [STRICT_TOOL], "tool_choice": "none"},
    "JSON": {"response_format": {"type": "json_object"}},
    "text": {"response_format": {"type": "text"}},
    "schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
        }
    },
    "schema of many properties": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WIDE}}
    },
    "what has no effect": {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
        "modalities": ["text"],
        "verbosity": "medium",
        "reasoning_effort": "none",
    },
    "nulls": {"temperature": None, "stop": None, "n": None, "seed": None, "logit_bias": None},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "list of one": {"prompt": ["ahoy to you"]},
    "echo": {"echo": True},
    "log-probabilities": {"logprobs": 2},
    "answers": {"n": 2, "best_of": 1, "seed": 3, "user": "u"},
    "limits": {"max_tokens": 20, "stop": ["x"], "temperature": 0.0, "top_p": 0.1},
}
RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "instructions": {"instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.5},
    "messages": {"input": [{"role": "developer", "content": "Be brief."}, *HI]},
    "parts": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "ahoy to you"}]},
        ]
    },
    "an earlier answer": {
        "input": [
            *HI,
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                ],
            },
            *HI,
        ]
    },
    "log-probabilities": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "schema": {
        "text": {
            "format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True},
            "verbosity": "medium",
        }
    },
    "what has no effect": {
        "store": False,
        "metadata": {"a": "b"},
        "truncation": "disabled",
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "user": "u",
    },
}


@pytest.mark.usefixtures("sampler")
def test_chat_completions(strict: openai.OpenAI, subtests: pytest.Subtests) -> None:
    for name, asked in CHATS.items():
        with subtests.test(name):
            check_chat(strict, asked)


def check_chat(strict: openai.OpenAI, asked: dict[str, Any]) -> None:
    request: dict[str, Any] = {"model": "tiny", "messages": HI} | asked
    whole = strict.chat.completions.create(**request)
    chunks = list(
        strict.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )

    n, has_logprobs = asked.get("n") or 1, bool(asked.get("logprobs"))
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


@pytest.mark.usefixtures("sampler")
def test_completions(strict: openai.OpenAI, subtests: pytest.Subtests) -> None:
    for name, asked in COMPLETIONS.items():
        with subtests.test(name):
            check_completion(strict, asked)


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


def check_completion(strict: openai.OpenAI, asked: dict[str, Any]) -> None:
    request: dict[str, Any] = {"model": "tiny", "prompt": "ahoy to you"} | asked
    whole = strict.completions.create(**request)
    chunks = stream_completion(strict, request)

    n = asked.get("n") or 1
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


@pytest.mark.usefixtures("sampler")
def test_responses(strict: openai.OpenAI, subtests: pytest.Subtests) -> None:
    for name, asked in RESPONSES.items():
        with subtests.test(name):
            check_response(strict, asked)


def check_response(strict: openai.OpenAI, asked: dict[str, Any]) -> None:
    request: dict[str, Any] = {"model": "tiny", "input": "ahoy to you"} | asked
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
    prompt = sampler.asked[0].ask
    assert prompt.parameters.form is not None
    assert prompt.parameters.form.json_schema == SCHEMA


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
