"""Answers that are held to a form: JSON by a schema, and calls of tools."""

import json

import openai

from tests.asking.questions import LOOK, TOOL, WHO, greedy, text_of
from tests.asking.reference import Tuned

SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer"}, "is_red": {"type": "boolean"}},
    "required": ["size", "is_red"],
    "additionalProperties": False,
}


def test_an_answer_is_held_to_a_schema(client: openai.OpenAI, tuned: Tuned) -> None:
    schema = {"name": "thing", "schema": SCHEMA, "strict": True}

    answer = greedy(
        client,
        tuned.name,
        WHO,
        temperature=1,
        seed=3,
        response_format={"type": "json_schema", "json_schema": schema},
        max_completion_tokens=500,
    )

    thing = json.loads(text_of(answer))
    assert set(thing) == {"size", "is_red"}
    assert isinstance(thing["size"], int)
    assert isinstance(thing["is_red"], bool)
    assert answer.choices[0].finish_reason == "stop"


def test_a_model_that_was_taught_a_tool_calls_it(client: openai.OpenAI, tuned: Tuned) -> None:
    answer = greedy(client, tuned.name, LOOK, tools=[TOOL])
    with client.chat.completions.stream(
        model=tuned.name, messages=LOOK, tools=[TOOL], temperature=0
    ) as stream:
        streamed = stream.get_final_completion()

    for each in (answer, streamed):
        (call,) = each.choices[0].message.tool_calls or ()
        assert call.function.name == "look"
        assert json.loads(call.function.arguments) == {"a": 7}
        assert each.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content


def test_a_call_that_is_required_is_made(client: openai.OpenAI) -> None:
    answer = greedy(
        client, "tiny", LOOK, tools=[TOOL], tool_choice="required", max_completion_tokens=500
    )

    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look"
    assert isinstance(json.loads(call.function.arguments)["a"], int)
