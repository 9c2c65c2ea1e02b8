import inspect
import sys
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from app.core.dataset.formats import ChatExample
from app.core.dataset.limits import MAX_MESSAGES
from tests.tiny import CHAT_TEMPLATE, build_tokenizer
from worker.training.data.chat_template import ChatTemplateError, NoChatTemplateError
from worker.training.data.chats import ChatRenderer, RenderedChat

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

SPACES = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "<s>[INST] {{ message['content'] | trim }} [/INST]"
    "{% else %} {{ message['content'] | trim }} </s>{% endif %}{% endfor %}"
)
"""As Llama 2 does it: spaces around an answer, and no other prompt."""

TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<tool_call>{{ call['function']['name'] }} {{ call['function']['arguments']['city'] }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CITY = '{"city": "Bern"}'
QUESTION = {"role": "user", "content": "How are you?"}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chat(*messages: dict[str, Any], **changes: Any) -> ChatExample:
    is_learned = [message["role"] == "assistant" for message in messages]
    return ChatExample(list(messages), changes.pop("is_learned", is_learned), **changes)


CALLS = answer(
    "",
    tool_calls=[
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": CITY}},
    ],
)


def render(
    template: str | None, example: ChatExample, *, stop_tokens: list[str] | None = None
) -> list[RenderedChat]:
    learned = [index for index, is_learned in enumerate(example.is_learned) if is_learned]
    tokenizer = build_tokenizer(template)
    renderer = ChatRenderer(tokenizer, today=date(2026, 1, 31), stop_tokens=stop_tokens)
    return renderer.render(example, learned)


def learned_texts(template: str, example: ChatExample) -> list[str]:
    return [
        chat.text[start:end] for chat in render(template, example) for start, end in chat.learned
    ]


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
        pytest.param(SPACES, [" Fine. </s>", " Bye! </s>"], id="spaces"),
        pytest.param(
            THINKING,
            ["<think>\n\n</think>\n\nFine.<|im_end|>", "<think>\n\n</think>\n\nBye!<|im_end|>"],
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
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    example = chat(
        QUESTION,
        CALLS,
        {"role": "tool", "content": "Rain", "tool_call_id": "1"},
        answer("It rains."),
        tools=[tool],
    )

    (row,) = render(TOOLS, example)

    assert row.text.startswith("<|im_start|>system\n[{")
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

SYSTEM_IN_LAST_QUESTION = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}<s>{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] "
    "{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}"
    "{{ message['content'] }}[/INST]"
    "{% else %} {{ message['content'] }}</s>{% endif %}{% endfor %}"
)
"""As Mistral v0.3 does it: the system prompt moves on, and is gone once an answer follows."""

ADDS_A_HEADER = (
    "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}answer: {% endif %}"
)
"""What it asks with is not in the conversation."""


def test_each_answer_is_a_row_of_its_own_where_the_template_rewrites_history() -> None:
    example = chat({"role": "system", "content": "S"}, QUESTION, answer("A"), QUESTION, answer("B"))

    rows = render(SYSTEM_IN_LAST_QUESTION, example)

    asked = "[INST] S\n\nHow are you?[/INST]"
    assert [row.text for row in rows] == [
        f"<s>{asked} A</s>",
        f"<s>[INST] How are you?[/INST] A</s>{asked} B</s>",
    ]
    assert [row.text[start:end] for row in rows for start, end in row.learned] == [
        " A</s>",
        " B</s>",
    ]


CALLS_WITHOUT_END = TOOLS.replace(
    "{% endfor %}<|im_end|>", "{% endfor %}{{ '' if message['tool_calls'] else '<|im_end|>' }}"
).replace("</tool_call>", "<|im_start|>")
"""An answer that calls a tool ends with a token that begins a turn."""


@pytest.mark.parametrize("stop_tokens", [None, ["<|im_end|>", "<|im_start|>"]])
def test_an_answer_may_end_with_any_token_that_stops_the_base_model(
    stop_tokens: list[str] | None,
) -> None:
    (row,) = render(CALLS_WITHOUT_END, chat(QUESTION, CALLS), stop_tokens=stop_tokens)

    assert [row.text[start:end] for start, end in row.learned] == [
        "<tool_call>weather Bern<|im_start|>"
    ]


def test_an_answer_that_ends_with_no_stop_token_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match=r"does not end the turn of messages\[1\]"):
        render(CALLS_WITHOUT_END, chat(QUESTION, CALLS), stop_tokens=["<|im_end|>"])


def test_an_answer_of_which_the_template_drops_a_call_is_refused() -> None:
    question = {"role": "user", "content": "What is the weather?"}

    with pytest.raises(ChatTemplateError, match=r"does not write all tool calls of messages\[1\]"):
        render(CHAT_TEMPLATE, chat(question, CALLS | {"content": "I ask for the weather."}))


def test_a_template_that_writes_only_the_first_of_several_calls_is_refused() -> None:
    only_first = TOOLS.replace("message['tool_calls'] or []", "(message['tool_calls'] or [])[:1]")
    twice = CALLS | {"tool_calls": CALLS["tool_calls"] * 2}

    assert len(learned_texts(only_first, chat(QUESTION, CALLS))) == 1
    assert learned_texts(TOOLS, chat(QUESTION, twice))[0].count("weather") == 2
    with pytest.raises(ChatTemplateError, match="does not write all tool calls"):
        render(only_first, chat(QUESTION, twice))


@pytest.mark.parametrize("turns", [1, 10])
@pytest.mark.parametrize(
    "dropped",
    [
        answer("A", reasoning_content="Hm."),
        answer("<think>Hm.</think>A"),
        CALLS | {"content": "Let me see."},
    ],
)
def test_an_answer_of_which_the_template_drops_a_text_is_not_whole(
    dropped: dict[str, Any], turns: int
) -> None:
    template = TOOLS.replace(
        "message['content'] }}",
        "'' if message['tool_calls'] else message['content'].split('</think>')[-1] }}",
    )
    written = [QUESTION, CALLS, QUESTION, answer("A", reasoning_content=" A ")] * turns

    (whole,) = render(template, chat(*written))
    (cropped,) = render(template, chat(*written, QUESTION, dropped, *written))

    assert whole.is_whole
    assert not cropped.is_whole
    assert len(cropped.learned) == 2 * len(whole.learned) + 1


ENDS_WITH_THE_NEXT_TURN = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<call>{{ call['function']['name'] }}</call>"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As GLM does it: the model stops at the token that begins the next message."""


@pytest.mark.parametrize("turns", [1, 10])
def test_the_token_that_begins_the_next_turn_ends_an_answer_if_the_base_model_stops_there(
    turns: int,
) -> None:
    result = {"role": "tool", "content": "Rain", "tool_call_id": "1"}
    example = chat(*[QUESTION, CALLS, result, answer("It rains.")] * turns)

    (row,) = render(ENDS_WITH_THE_NEXT_TURN, example, stop_tokens=["<|user|>", "<|tool|>"])

    assert [row.text[start:end] for start, end in row.learned] == [
        "\n<call>weather</call><|tool|>",
        "\nIt rains.<|user|>",
    ] * turns


def test_a_call_at_the_end_of_a_chat_ends_with_the_token_that_begins_its_result() -> None:
    stop_tokens = ["<|user|>", "<|tool|>"]

    (row,) = render(ENDS_WITH_THE_NEXT_TURN, chat(QUESTION, CALLS), stop_tokens=stop_tokens)

    assert row.text.endswith("</call><|tool|>")


@pytest.mark.parametrize("stop_tokens", [None, ["<|eot|>"]])
def test_a_template_is_refused_if_the_base_model_may_not_stop_where_the_next_turn_begins(
    stop_tokens: list[str] | None,
) -> None:
    template = ENDS_WITH_THE_NEXT_TURN.replace("<|{{", "<|im_start|>{{")

    with pytest.raises(ChatTemplateError, match="does not mark where an answer ends"):
        render(template, chat(QUESTION, answer("A")), stop_tokens=stop_tokens)


def test_a_call_is_refused_if_the_base_model_does_not_stop_where_its_result_begins() -> None:
    with pytest.raises(ChatTemplateError, match=r"does not end the turn of messages\[1\]"):
        render(ENDS_WITH_THE_NEXT_TURN, chat(QUESTION, CALLS), stop_tokens=["<|user|>"])


BEGINS_A_THOUGHT = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


@pytest.mark.parametrize(
    "template",
    [
        BEGINS_A_THOUGHT,
        BEGINS_A_THOUGHT.replace("['content']", "['content'].split('</think>')[-1].strip()"),
    ],
    ids=["keeps-thoughts", "drops-thoughts"],
)
@pytest.mark.parametrize("begin", ["", "<think>\n"])
def test_a_raw_completion_goes_on_with_the_thought_that_the_prompt_begins(
    template: str, begin: str
) -> None:
    example = chat(QUESTION, answer(f"{begin}Hm.\n</think>\n\nFine."))

    (row,) = render(template, example)

    assert row.text[: row.learned[0][0]].endswith("assistant\n<think>\n")
    assert learned_texts(template, example) == ["Hm.\n</think>\n\nFine.<|im_end|>"]
    assert row.is_whole


ASKS_WITH_AN_EMPTY_THOUGHT = CHAT_TEMPLATE.replace(
    "\n{{ message['content']",
    "\n{% if message['reasoning_content'] %}<thought>\n{{ message['reasoning_content'] }}\n"
    "</thought>\n{% endif %}{{ message['content']",
).replace("assistant\n{% endif", "assistant\n<thought>\n</thought>\n{% endif")
"""As Gemma 4 does it: only the prompt has an empty thought."""


def test_an_answer_follows_the_empty_thought_of_its_prompt() -> None:
    example = chat(QUESTION, answer("A"), QUESTION, answer("B", reasoning_content="Hm."))

    rows = render(ASKS_WITH_AN_EMPTY_THOUGHT, example)

    assert [row.text[slice(*row.learned[0])] for row in rows] == ["A<|im_end|>", "B<|im_end|>"]
    assert all(row.text.endswith("<thought>\n</thought>\n" + row.text[-11:]) for row in rows)
    assert [row.is_whole for row in rows] == [True, False]


def test_an_answer_is_given_what_the_model_is_given_at_inference() -> None:
    (row,) = render(LOOKS_BACK, chat(QUESTION, answer("A")))

    assert row.text == "1How are you?<|im_end|>A<|im_end|>"
    assert row.learned == [(row.text.index("A<"), len(row.text))]


@pytest.mark.parametrize(
    ("template", "example", "reason"),
    [
        pytest.param(
            ADDS_A_HEADER,
            chat(QUESTION, answer("A")),
            r"writes messages\[1\] differently from how it asks the model for it",
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
        render(template, example)


def deepest_arguments() -> str:
    """Tool arguments that Python can just parse from here, and that a template cannot render."""
    depth = sys.getrecursionlimit() - len(inspect.stack(0)) - 20
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
        render(template, chat(QUESTION, answer("", tool_calls=[call])))


def long_chat(turns: int) -> ChatExample:
    """Questions and answers, of which no two are the same and some are weighted 0."""
    messages = [
        message
        for turn in range(turns)
        for message in ({"role": "user", "content": f"{turn}?"}, answer(f"It is {turn}."))
    ]
    is_learned = [index % 2 == 1 and index % 7 > 0 for index in range(len(messages))]
    return chat(*messages, is_learned=is_learned)


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, DEFAULT_SYSTEM_PROMPT + CHAT_TEMPLATE, HEADERS]
)
def test_a_long_chat_has_the_answers_of_a_short_one(template: str) -> None:
    example = long_chat(40)

    (row,) = render(template, example)

    end = "<|eot|>" if template == HEADERS else "<|im_end|>"
    assert [row.text[start:dot] for start, dot in row.learned] == [
        f"{message['content']}{end}"
        for message, is_learned in zip(example.messages, example.is_learned, strict=True)
        if is_learned
    ]


@pytest.mark.parametrize("template", [THINKING, LOOKS_BACK])
def test_a_long_chat_is_split_where_the_template_rewrites_history(template: str) -> None:
    example = long_chat(20)

    assert len(render(template, example)) == sum(example.is_learned)


def test_a_long_chat_is_refused_where_the_template_asks_differently_after_many_messages() -> None:
    asks = "{% if add_generation_prompt %}{{ 'Now: ' if messages | length > 9 else '' }}"
    template = CHAT_TEMPLATE.replace("{% if add_generation_prompt %}", asks)

    with pytest.raises(ChatTemplateError, match="differently from how it asks the model"):
        render(template, long_chat(20))


def test_too_long_a_chat_is_refused_where_the_template_rewrites_history() -> None:
    with pytest.raises(ChatTemplateError, match=r"has 1,002 messages; the limit .* is 1,000"):
        render(THINKING, long_chat(501))


def test_the_longest_chat_is_rendered_in_seconds() -> None:
    example = long_chat(MAX_MESSAGES // 2)

    began_s = time.process_time()
    (row,) = render(CHAT_TEMPLATE, example)

    assert len(row.learned) == sum(example.is_learned)
    assert time.process_time() - began_s < 8


def test_a_template_sees_the_date_of_the_job_and_not_the_clock() -> None:
    template = "{{ strftime_now('%d %b %Y %H:%M') }}\n" + CHAT_TEMPLATE

    (row,) = render(template, chat(QUESTION, answer("A")))

    assert row.text.startswith("31 Jan 2026 00:00\n")


def test_a_model_without_a_chat_template_is_refused() -> None:
    with pytest.raises(NoChatTemplateError, match="no chat template"):
        render(None, chat(QUESTION, answer("A")))
