"""Rows as other trainers have them, and the examples that they become."""

import json
from typing import Any

import pytest

from app.core.dataset.checker import DatasetChecker, DatasetSummary
from app.core.dataset.formats import (
    ChatExample,
    DatasetFormat,
    PreferenceExample,
    PromptExample,
)
from app.core.dataset.rows.parsing import parse_line

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Ho"}
BAD = {"role": "assistant", "content": "Go away"}
TOOL = {"type": "function", "function": {"name": "add"}}


def parse(row: dict[str, Any]) -> Any:
    return parse_line(json.dumps(row).encode())


def check(*rows: dict[str, Any]) -> DatasetSummary:
    checker = DatasetChecker()
    checker.feed("\n".join(json.dumps(row) for row in rows).encode())
    return checker.finish()


def chat(question: str, answer: str) -> ChatExample:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return ChatExample(messages, [False, True])


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({"input": "Höhe"}, "Translate.\n\nHöhe"),
        ({"input": ""}, "Translate."),
        ({"input": None}, "Translate."),
        ({}, "Translate."),
    ],
    ids=["input", "empty input", "null input", "no input"],
)
def test_an_instruction_is_asked_and_its_output_answers(
    fields: dict[str, Any], question: str
) -> None:
    row = {"instruction": "Translate.", "output": "Height"} | fields

    assert parse(row) == (DatasetFormat.INSTRUCTION, chat(question, "Height"))


def test_a_conversation_in_sharegpt_words_is_a_chat() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Ho"},
        {"from": "user", "value": "And?"},
        {"from": "assistant", "value": "No.", "weight": None},
    ]

    format_, example = parse({"id": "7", "conversations": turns})

    assert format_ is DatasetFormat.SHAREGPT
    assert [(one["role"], one["content"]) for one in example.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Ho"),
        ("user", "And?"),
        ("assistant", "No."),
    ]
    assert example.is_learned == [False, False, True, False, True]


def test_a_sharegpt_row_may_have_tools_and_its_system_message_beside_the_turns() -> None:
    turns = [
        {"from": "human", "value": "1 + 2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "Three."},
    ]

    _, example = parse(
        {"conversations": turns, "system": "Be brief.", "tools": '[{"name": "add"}]'}
    )

    function = {"name": "add", "arguments": {"a": 1}}
    assert example.tools == [TOOL]
    assert example.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Three."},
    ]
    assert example.is_learned == [False, False, True, False, True]


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {
            "input": {"messages": [USER]},
            "preferred_completion": [GOOD],
            "non_preferred_completion": [BAD],
        },
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    ],
    ids=["OpenAI's guide", "OpenAI's specification", "TRL"],
)
def test_a_preference_is_two_answers_to_a_chat(row: dict[str, Any]) -> None:
    assert parse(row) == (
        DatasetFormat.PREFERENCE,
        PreferenceExample(
            ChatExample([USER, GOOD], [False, True]), ChatExample([USER, BAD], [False, True])
        ),
    )


def test_a_preference_may_be_plain_text() -> None:
    assert parse({"prompt": "Hi", "chosen": "Ho", "rejected": "Go"})[1] == PreferenceExample(
        PromptExample("Hi", "Ho"), PromptExample("Hi", "Go")
    )


def test_the_tools_of_a_preference_are_noticed() -> None:
    row = {
        "input": {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    }

    summary = check(row)

    assert (summary.format, summary.uses_tools) == (DatasetFormat.PREFERENCE, True)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [USER], "reference_answer": "4"}, "reinforcement fine-tuning"),
        ({"prompt": "a", "completion": "b", "label": True}, "KTO"),
        ({"custom_id": "1", "method": "POST", "url": "/v1", "body": {}}, "batch API"),
        ({"item": {"question": "a"}}, "evaluation"),
        ({"input_ids": [1, 2]}, "tokens"),
    ],
    ids=["reinforcement", "rated answers", "batch", "evaluation", "tokens"],
)
def test_rows_of_another_purpose_are_named_once(row: dict[str, Any], says: str) -> None:
    summary = check(*[row] * 3)

    assert [(one.line, one.path, one.code) for one in summary.problems] == [
        (1, "", "unsupported_format")
    ]
    assert says in summary.problems[0].message
    assert summary.is_partial


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "messages": []},
        {"text": "a", "conversations": []},
        {"prompt": "a", "completion": "b", "chosen": "c"},
    ],
)
def test_a_row_of_two_formats_is_refused(row: dict[str, Any]) -> None:
    assert [one.code for one in check(row).problems] == ["unknown_format"]
