import inspect
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.core.dataset.formats import ChatExample
from app.core.dataset.limits import MAX_MESSAGES
from tests.tiny import CHAT_TEMPLATE, build_tokenizer
from worker.training.data.encoding import ChatRenderer, ChatTemplateError, NoChatTemplateError

DEFAULT_SYSTEM_PROMPT = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)
"""As Qwen2 and SmolLM2 begin a chat that has no system prompt of its own."""

HEADERS = (
    "<|begin|>{% for message in messages %}"
    "<|start|>{{ message['role'] }}<|end|>\n\n{{ message['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
"""As Llama 3 does it: no white space after a turn."""

TURNS = (
    "<bos>{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<turn>{{ role }}\n{{ message['content'] | trim }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
"""As Gemma does it: another word for the assistant, and no system prompt."""

THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3 does it: only the last answer begins with a thought."""

TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<tool_call>{{ call['function']['name'] }} {{ call['function']['arguments']['city'] }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QUESTION = {"role": "user", "content": "How are you?"}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chat(*messages: dict[str, Any], **changes: Any) -> ChatExample:
    is_learned = [message["role"] == "assistant" for message in messages]
    return ChatExample(list(messages), changes.pop("is_learned", is_learned), **changes)


def learned_texts(template: str, example: ChatExample) -> list[str]:
    text, spans = ChatRenderer(build_tokenizer(template)).render(example)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(CHAT_TEMPLATE, ["Fine.<|im_end|>", "Bye!<|im_end|>"], id="chatml"),
        pytest.param(
            DEFAULT_SYSTEM_PROMPT + CHAT_TEMPLATE,
            ["Fine.<|im_end|>", "Bye!<|im_end|>"],
            id="default-system-prompt",
        ),
        pytest.param(HEADERS, ["Fine.<|eot|>", "Bye!<|eot|>"], id="headers"),
        pytest.param(TURNS, ["Fine.</turn>", "Bye!</turn>"], id="turns"),
        pytest.param(
            THINKING,
            ["Fine.<|im_end|>", "<think>\n\n</think>\n\nBye!<|im_end|>"],
            id="thinking",
        ),
    ],
)
def test_an_answer_is_learned_from_its_prompt_through_its_end_of_turn(
    template: str, expected: list[str]
) -> None:
    example = chat(QUESTION, answer("Fine."), {"role": "user", "content": "Bye."}, answer("Bye!"))

    assert learned_texts(template, example) == expected


def test_an_answer_of_weight_zero_is_not_learned() -> None:
    example = chat(
        QUESTION, answer("Bad."), QUESTION, answer("Good."), is_learned=[False, False, False, True]
    )

    assert learned_texts(CHAT_TEMPLATE, example) == ["Good.<|im_end|>"]


def test_two_answers_in_a_row_are_both_learned() -> None:
    example = chat(QUESTION, answer("One."), answer("Two."))

    assert learned_texts(CHAT_TEMPLATE, example) == ["One.<|im_end|>", "Two.<|im_end|>"]


def test_an_answer_may_open_the_chat() -> None:
    example = chat(answer("Hello!"), QUESTION, answer("Fine."))

    expected = ["Hello!<|im_end|>", "Fine.<|im_end|>"]
    assert learned_texts(DEFAULT_SYSTEM_PROMPT + CHAT_TEMPLATE, example) == expected


def test_an_answer_that_holds_an_end_of_turn_is_learned_whole() -> None:
    example = chat(QUESTION, answer("It is written <|im_end|> so."), QUESTION, answer("Yes."))

    expected = ["It is written <|im_end|> so.<|im_end|>", "Yes.<|im_end|>"]
    assert learned_texts(CHAT_TEMPLATE, example) == expected


def test_an_answer_that_the_template_changes_does_not_reach_into_the_next_turn() -> None:
    # Only answers are changed, so the first one is written as it was only in the next question.
    changed = "message['content'] | replace('y', 'Y' if message['role'] == 'assistant' else 'y')"
    template = CHAT_TEMPLATE.replace("message['content']", changed)
    example = chat(QUESTION, answer("yes"), {"role": "user", "content": "yes?"}, answer("no"))

    assert learned_texts(template, example) == ["Yes<|im_end|>", "no<|im_end|>"]


def test_tools_reach_the_template_and_a_call_is_learned() -> None:
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"city": "Bern"})},
    }
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    example = chat(
        QUESTION,
        answer("", tool_calls=[call]),
        {"role": "tool", "content": "Rain", "tool_call_id": "1"},
        answer("It rains."),
        tools=[tool],
    )

    text, _ = ChatRenderer(build_tokenizer(TOOLS)).render(example)

    assert text.startswith("<|im_start|>system\n[{")
    assert learned_texts(TOOLS, example) == [
        "<tool_call>weather Bern</tool_call><|im_end|>",
        "It rains.<|im_end|>",
    ]


def test_arguments_that_are_not_json_stay_a_string() -> None:
    template = TOOLS.replace("['arguments']['city']", "['arguments']")
    call = {"id": "1", "type": "function", "function": {"name": "say", "arguments": "{oops"}}

    texts = learned_texts(template, chat(QUESTION, answer("", tool_calls=[call])))

    assert texts == ["<tool_call>say {oops</tool_call><|im_end|>"]


LOOKS_BACK = (
    "{% for message in messages %}"
    "{{ messages | length if loop.first else '' }}{{ message['content'] }}<|im_end|>{% endfor %}"
)
"""What it writes first depends on what comes last."""


@pytest.mark.parametrize(
    ("template", "example", "reason"),
    [
        pytest.param(
            LOOKS_BACK,
            chat(QUESTION, answer("A")),
            "differently once that message is added",
            id="no-prefix",
        ),
        pytest.param(
            TURNS,
            chat({"role": "system", "content": "S"}, QUESTION, answer("A")),
            "System role not supported",
            id="refuses-the-role",
        ),
        pytest.param(
            CHAT_TEMPLATE.replace("message['content']", "message['content'] + message['text']"),
            chat(QUESTION, answer("A")),
            "the chat template failed",
            id="undefined-field",
        ),
        pytest.param(
            "{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
            chat(QUESTION, answer("A")),
            "does not mark where an answer ends",
            id="no-end-of-turn",
        ),
    ],
)
def test_a_template_whose_answers_cannot_be_found_is_refused(
    template: str, example: ChatExample, reason: str
) -> None:
    with pytest.raises(ChatTemplateError, match=reason):
        ChatRenderer(build_tokenizer(template)).render(example)


def deepest_arguments() -> str:
    """Tool arguments that Python can just parse from here, and that a template cannot render."""
    depth = sys.getrecursionlimit() - len(inspect.stack(0)) - 15
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("write_arguments", "reason"),
    [
        (deepest_arguments, "nested too deeply"),
        (lambda: '{"city": "\\ud800"}', "half of a surrogate pair"),
    ],
    ids=["deep", "surrogate"],
)
def test_arguments_of_an_older_file_that_cannot_be_rendered_are_named(
    write_arguments: Callable[[], str], reason: str
) -> None:
    template = TOOLS.replace("['arguments']['city']", "['arguments'] | tojson")
    function = {"name": "say", "arguments": write_arguments()}
    call = {"id": "1", "type": "function", "function": function}

    with pytest.raises(ChatTemplateError, match=reason):
        ChatRenderer(build_tokenizer(template)).render(
            chat(QUESTION, answer("", tool_calls=[call]))
        )


def test_the_longest_chat_is_rendered_in_seconds() -> None:
    example = chat(*[QUESTION, answer("Fine.")] * (MAX_MESSAGES // 2))
    renderer = ChatRenderer(build_tokenizer(CHAT_TEMPLATE))

    began_s = time.process_time()
    _, spans = renderer.render(example)

    assert len(spans) == MAX_MESSAGES // 2
    assert time.process_time() - began_s < 4


def test_a_model_without_a_chat_template_is_refused() -> None:
    with pytest.raises(NoChatTemplateError, match="no chat template"):
        ChatRenderer(build_tokenizer(None))
