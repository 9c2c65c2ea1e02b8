"""Messages as OpenAI's client writes them, today's and yesterday's."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_message import FunctionCall
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall,
    Function,
)

from app.core.dataset.formats import ChatExample
from app.core.dataset.rows.parsing import parse_line

USER = {"role": "user", "content": "How high is the tide?"}
ADD = {"name": "add", "parameters": {"type": "object", "properties": {}}}


def parse(*messages: Any, **fields: Any) -> ChatExample:
    _, example = parse_line(json.dumps({"messages": messages, **fields}).encode())
    assert isinstance(example, ChatExample)
    return example


def test_a_dumped_answer_is_its_text() -> None:
    message = ChatCompletionMessage(role="assistant", content="2.1 m", annotations=[])

    example = parse(USER | {"name": None}, message.model_dump())

    assert example.messages == [USER, {"role": "assistant", "content": "2.1 m"}]
    assert example.is_learned == [False, True]


def test_a_dumped_tool_call_is_kept() -> None:
    call = ChatCompletionMessageFunctionToolCall(
        id="c", type="function", function=Function(name="add", arguments="{}")
    )
    message = ChatCompletionMessage(role="assistant", content=None, tool_calls=[call])

    assert parse(USER, message.model_dump()).messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        ],
    }


def test_legacy_functions_become_tools() -> None:
    call = FunctionCall(name="add", arguments='{"a": 1}')
    message = ChatCompletionMessage(role="assistant", content=None, function_call=call)
    result = {"role": "function", "name": "add", "content": "3"}
    answer = {"role": "assistant", "content": "Three."}

    example = parse(USER, message.model_dump(), result, answer, functions=[ADD])

    function = {"name": "add", "arguments": '{"a": 1}'}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    assert example.tools == [{"type": "function", "function": ADD}]
    assert example.messages[1:3] == [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "name": "add", "tool_call_id": "call_1", "content": "3"},
    ]
    assert example.is_learned == [False, True, False, True]
    assert example.uses_tools


def test_each_legacy_result_answers_the_call_before_it() -> None:
    call = {"role": "assistant", "function_call": {"name": "add", "arguments": "{}"}}
    result = {"role": "function", "name": "add", "content": "3"}

    example = parse(USER, call, result, call, result)

    assert [one.get("tool_call_id") for one in example.messages] == [
        None,
        None,
        "call_1",
        None,
        "call_3",
    ]


def test_a_tool_result_keeps_the_lack_of_an_id() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]}

    assert "tool_call_id" not in parse(USER, call, {"role": "tool", "content": "3"}).messages[2]


def test_reasoning_reaches_the_chat_template() -> None:
    answer = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}

    assert parse(USER, answer).messages[1] == answer


@pytest.mark.parametrize(
    "name",
    ["name", "tool_call_id", "tool_calls", "function_call", "reasoning_content", "refusal", "x"],
)
def test_a_null_field_is_absent(name: str) -> None:
    answer = {"role": "assistant", "content": "4"}

    assert parse(USER, answer | {name: None}).messages[1] == answer


@pytest.mark.parametrize(
    ("name", "empty"),
    [("name", ""), ("tool_call_id", ""), ("tool_calls", []), ("annotations", []), ("refusal", "")],
)
def test_an_empty_field_is_absent(name: str, empty: Any) -> None:
    answer = {"role": "assistant", "content": "4"}

    assert parse(USER, answer | {name: empty}).messages[1] == answer


def test_null_tools_are_absent() -> None:
    assert (
        parse(USER, {"role": "assistant", "content": "4"}, tools=None, functions=[]).tools is None
    )
