"""Tool calls that a template writes are read back, whatever the pieces they come in."""

import json
from typing import Any

import pytest

from app.core.sampling.messages import ToolCall
from tests.chat_families import FAMILIES, TODAY, build_tokenizer
from worker.sampling.decoding.calls.detection import detect_form
from worker.sampling.decoding.calls.forms import FORMS, CallForm
from worker.sampling.decoding.calls.reader import CallReader
from worker.sampling.decoding.calls.values import schemas_of
from worker.sampling.decoding.text.told import Told
from worker.training.data.answers import AnswerFinder
from worker.training.data.chat_template import ChatTemplate, ChatTemplateError, list_added_tokens

HERMES = FORMS[0]
BARE = FORMS[-1]

TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Does.",
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": kind, "description": "A value."}
                    for key, kind in properties.items()
                },
                "required": [],
            },
        },
    }
    for name, properties in {
        "find_city": {"city": "string", "number": "integer", "exact": "boolean"},
        "plot": {"points": "array", "style": "object"},
    }.items()
)
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("find_city", {"city": "Zürich 東京", "number": 3}),
    ("find_city", {"city": "1", "number": -4}),
    ("plot", {"points": [1, 2.5, "x"], "style": {"colour": "red", "width": 2}}),
]
KNOWN = {
    "deepseek_r1_0528",
    "deepseek_v3_1",
    "deepseekv3",
    "glm4moe",
    "granite_4",
    "lfm2_2_5_v2",
    "llama3_1",
    "llama3_2",
    "mistral_small_3",
    "mistral_v0_3",
    "nemotron_3_nano",
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "qwen3_instruct_2507",
}
ONE_CALL = {"llama3_1", "llama3_2"}
"""Families whose templates take one call in an answer."""


def finder_of(family: str) -> AnswerFinder:
    tokenizer = build_tokenizer(family)
    template = ChatTemplate(tokenizer, today=TODAY)
    return AnswerFinder(template, FAMILIES[family].get("stop_tokens"), list_added_tokens(tokenizer))


def is_known(family: str) -> bool:
    try:
        return detect_form(finder_of(family)) is not None
    except ChatTemplateError:
        return False


def read(form: CallForm, text: str, *, size: int = 1) -> Told:
    reader = CallReader(form, schemas_of(TOOLS))
    told = Told()
    for start in range(0, len(text), size):
        told += reader.add(text[start : start + size])
    return told + reader.end()


def parsed(calls: tuple[ToolCall, ...]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


def test_the_forms_of_these_families_are_known() -> None:
    found = {family for family in FAMILIES if is_known(family)}

    assert found == KNOWN


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("family", sorted(KNOWN))
def test_what_a_template_writes_is_read_back(family: str, size: int) -> None:
    finder = finder_of(family)
    detected = detect_form(finder)
    assert detected
    calls = CALLS[:1] if family in ONE_CALL else CALLS
    written = [
        {
            "id": f"call0000{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(calls)
    ]
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": written},
    ]
    answer = finder.find(finder.template.adapt(messages), list(TOOLS)).completion

    told = read(detected.form, answer.removesuffix(finder.stop), size=size)

    assert parsed(told.calls) == calls
    assert "find_city" not in told.text


@pytest.mark.parametrize(
    "text",
    [
        '<TOOLCALL>[{"name": "plot", "arguments": {"points": [1]}}]</TOOLCALL>',
        '<tool_calls>[\n {"name": "plot", "arguments": {"points": [1]}}\n]</tool_calls>',
        "<function_calls>plot(points=[1])</function_calls>",
        '[{"name": "plot", "arguments": {"points": [1]}}]',
        '{"name": "plot", "parameters": {"points": [1]}}',
    ],
)
def test_other_forms_are_read(text: str) -> None:
    found = [form for form in FORMS if parsed(read(form, text).calls)]

    assert [parsed(read(form, text).calls) for form in found] == [[("plot", {"points": [1]})]]


def test_python_calls_may_stand_in_lines() -> None:
    text = "<function_calls>plot(points=[])\nfind_city(city='x', exact=true)</function_calls>"
    (form,) = (form for form in FORMS if form.opening == "<function_calls>")

    assert parsed(read(form, text).calls) == [
        ("plot", {"points": []}),
        ("find_city", {"city": "x", "exact": True}),
    ]


def test_text_before_a_call_is_told_without_the_space_between() -> None:
    call = '<tool_call>\n{"name": "plot", "arguments": {"points": []}}\n</tool_call>'

    told = read(HERMES, f"I draw.\n{call}\n{call}\n")

    assert told.text == "I draw."
    assert parsed(told.calls) == [("plot", {"points": []})] * 2


def test_text_is_told_as_it_comes() -> None:
    reader = CallReader(HERMES, {})

    told = [reader.add(piece).text for piece in ("If a ", "< b ", "<tool", "box>", " is")]

    assert told == ["If a", " < b", "", " <toolbox>", " is"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{broken\n</tool_call>",
        '<tool_call>{"name": "plot"}</tool_call>',
        '<tool_call>{"name": "plot", "arguments": {"x": NaN}}</tool_call> Sorry.',
        '<tool_call>{"name": "plot", "arguments": {}}',
        "<tool_call>" + "[" * 5000 + "</tool_call>",
        "No call at all <tool_call",
    ],
)
def test_a_malformed_call_stays_text(text: str) -> None:
    assert read(HERMES, text) == Told(text)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.opening)
def test_hostile_text_is_no_call(form: CallForm) -> None:
    for body in (
        "",
        "import os",
        "x = f()",
        "f()\nimport os",
        "f(*a)",
        "[" * 2000,
        "{}",
        "[]",
        "__import__('os').abort()",
        "[f(x=g())]",
        "[f(x=1e999)]",
        "[f(x=[-1e999])]",
        "[f(x='\\ud800')]",
        "<f=><",
    ):
        text = f"{'' if form.is_bare else form.opening}{body}{form.closing or ''}"
        assert read(form, text, size=1000).calls == ()


def test_json_that_names_no_tool_of_the_request_is_an_answer() -> None:
    answer = '{"name": "Bern", "parameters": {}}'

    assert read(BARE, answer) == Told(answer)
    assert read(BARE, "Look: {}") == Told("Look: {}")


def test_a_value_without_quotes_has_the_type_of_the_schema() -> None:
    text = (
        "<tool_call>\n<function=find_city>\n<parameter=city>\n12\n</parameter>\n"
        "<parameter=exact>\nTrue\n</parameter>\n<parameter=number>\n12\n</parameter>\n"
        "</function>\n</tool_call>"
    )

    assert parsed(read(FORMS[1], text).calls) == [
        ("find_city", {"city": "12", "exact": True, "number": 12})
    ]
