"""Lines that are small to send and would be costly to parse, to keep or to render."""

import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.core.dataset.checker import MAX_LINE_BYTES, DatasetChecker, DatasetSummary
from app.core.dataset.formats import MAX_PROBLEMS
from app.core.dataset.limits import MAX_DEPTH, MAX_LINES, MAX_MESSAGES, MAX_VALUES
from tests.builders import TEXT_LINE

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}
MAX_MEMORY_BYTES = 64 * 2**20


def check(content: bytes, *, max_lines: int = MAX_LINES) -> DatasetSummary:
    checker = DatasetChecker(max_lines=max_lines)
    checker.feed(content)
    return checker.finish()


def codes(content: bytes) -> list[tuple[str, str]]:
    return [(one.path, one.code) for one in check(content).problems]


def chat(*messages: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"messages": [*messages], **fields}).encode()


def calling(arguments: str) -> bytes:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return chat(USER, {"role": "assistant", "tool_calls": [call]})


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "item",
    [b"{}", b"[]", b"1", b'""', b'{"role":"x"}', b'"\\\\\\""'],
    ids=["objects", "lists", "numbers", "strings", "messages", "escapes"],
)
def test_a_line_of_very_many_values_is_refused_in_little_memory(item: bytes) -> None:
    count = (MAX_LINE_BYTES - 100) // (len(item) + 1)
    line = b'{"messages": [' + b",".join([item] * count) + b"]}"

    with bounded_memory():
        assert codes(line) == [("", "too_many_values")]


def test_a_line_of_very_many_keys_is_refused_in_little_memory() -> None:
    line = b'{"text": "a",' + b",".join(b'"%d":1' % i for i in range(700_000)) + b"}"

    with bounded_memory():
        assert codes(line) == [("", "too_many_values")]


def test_marks_inside_of_a_text_are_not_counted() -> None:
    text = 'a, {b}, [c], "d", \\' * (MAX_VALUES // 2)

    assert check(json.dumps({"text": text}).encode()).problems == []


def test_bad_messages_are_counted_to_the_fiftieth() -> None:
    line = chat(*[{"role": "robot", "content": "a"}] * MAX_MESSAGES)

    summary = check(line + b"\n" + TEXT_LINE)

    assert [one.path for one in summary.problems] == [
        f"messages[{index}].role" for index in range(MAX_PROBLEMS)
    ]
    assert summary.is_partial


def test_unknown_keys_are_counted_to_the_fiftieth() -> None:
    summary = check(json.dumps({"text": "a"} | {f"key{i:04}": i for i in range(1000)}).encode())

    assert len(summary.problems) == MAX_PROBLEMS
    assert summary.is_partial


def test_a_file_of_bad_short_lines_costs_little() -> None:
    content = b"[]\n" * 700_000

    began_s = time.process_time()
    summary = check(content)

    assert time.process_time() - began_s < 1
    assert summary.is_partial


def test_a_chat_has_a_thousand_messages_at_most() -> None:
    good = chat(*[USER, ANSWER] * (MAX_MESSAGES // 2))
    bad = chat(*[USER, ANSWER] * (MAX_MESSAGES // 2), ANSWER)

    assert codes(good) == []
    assert codes(bad) == [("messages", "too_many_messages")]


@pytest.mark.parametrize(
    ("deep", "path"),
    [
        pytest.param(
            lambda depth: chat(USER, ANSWER, tools=[json.loads(nested(depth - 1))]),
            "tools",
            id="tools",
        ),
        pytest.param(
            lambda depth: chat(
                USER, {"role": "assistant", "tool_calls": [json.loads(nested(depth - 1))]}
            ),
            "messages[1].tool_calls",
            id="calls",
        ),
        pytest.param(
            lambda depth: calling(nested(depth)),
            "messages[1].tool_calls[0].function.arguments",
            id="arguments",
        ),
    ],
)
def test_tools_are_nested_64_levels_deep_at_most(deep: Any, path: str) -> None:
    assert codes(deep(MAX_DEPTH)) == []
    assert codes(deep(MAX_DEPTH + 1)) == [(path, "too_deep")]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (nested(500), "too_deep"),
        ("[" * 10_000 + "]" * 10_000, "too_deep"),
        ('{"a": "\\ud800"}', "invalid_json"),
        ('{"\\udc00": 1}', "invalid_json"),
        ("[" + "1," * MAX_VALUES + "1]", "too_many_values"),
    ],
    ids=["deep", "very deep", "surrogate", "surrogate key", "many values"],
)
def test_arguments_that_no_template_renders_are_refused(arguments: str, code: str) -> None:
    path = "messages[1].tool_calls[0].function.arguments"

    assert codes(calling(arguments)) == [(path, code)]


@pytest.mark.parametrize("arguments", ["", "no JSON", '{"a": "\\ud83d\\ude00"}', "{", "\\ud800"])
def test_arguments_may_be_any_other_text(arguments: str) -> None:
    assert codes(calling(arguments)) == []


def test_a_file_has_a_greatest_number_of_lines() -> None:
    summary = check(TEXT_LINE * 5, max_lines=3)

    assert [(one.line, one.code) for one in summary.problems] == [(4, "too_many_lines")]
    assert summary.examples == 3
    assert summary.is_partial
