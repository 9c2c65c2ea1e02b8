import json
from typing import Any

import pytest

from app.core.dataset.formats import (
    ChatExample,
    DatasetFormat,
    LineError,
    PromptExample,
    TextExample,
)
from app.core.dataset.rows.parsing import parse_line

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Ho"}
NO_FORMAT = (
    "This line needs the key 'messages', or 'prompt' and 'completion', or 'text', or those of "
    "another format in docs/files.md."
)


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages)} | more


def parse(row: Any) -> Any:
    return parse_line(json.dumps(row).encode())[1]


def test_each_format_is_known_by_its_keys() -> None:
    assert parse_line(b'{"text": "a"}') == (DatasetFormat.TEXT, TextExample("a"))
    assert parse_line(b'{"prompt": "", "completion": "b"}') == (
        DatasetFormat.PROMPT_COMPLETION,
        PromptExample("", "b"),
    )
    assert parse_line(json.dumps(chat(USER, ASSISTANT)).encode()) == (
        DatasetFormat.MESSAGES,
        ChatExample([USER, ASSISTANT], [False, True]),
    )


def test_weights_say_which_answers_are_learned_and_are_not_shown_to_the_template() -> None:
    example = parse(chat(USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 1}))

    assert example.is_learned == [False, False, False, True]
    assert example.messages == [USER, ASSISTANT, USER, ASSISTANT]


def test_a_developer_message_is_a_system_message() -> None:
    example = parse(chat({"role": "developer", "content": "Be brief."}, ASSISTANT))

    assert example.messages[0] == {"role": "system", "content": "Be brief."}


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]

    assert parse(chat({"role": "user", "content": parts}, ASSISTANT)).messages[0] == {
        "role": "user",
        "content": "Hi there",
    }


@pytest.mark.parametrize(
    ("row", "uses_tools"),
    [
        (chat(USER, ASSISTANT), False),
        (chat(USER, ASSISTANT, tools=[]), False),
        (chat(USER, ASSISTANT, tools=[{"type": "function"}]), True),
        (chat(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}), True),
        (chat(USER, {"role": "tool", "content": "4", "tool_call_id": "c"}, ASSISTANT), True),
    ],
    ids=["none", "an empty list", "offered", "called", "answered"],
)
def test_tools_are_noticed_because_not_every_template_shows_them(
    row: dict[str, Any], *, uses_tools: bool
) -> None:
    assert parse(row).uses_tools is uses_tools


def test_a_tool_call_needs_no_text() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}]

    example = parse(chat(USER, {"role": "assistant", "content": None, "tool_calls": calls}))

    assert example.messages[1] == {"role": "assistant", "content": "", "tool_calls": calls}


@pytest.mark.parametrize(
    ("row", "code", "path", "message"),
    [
        (
            [1],
            "not_an_object",
            "",
            'This line must be a JSON object, as {"text": "..."} is.',
        ),
        (
            {},
            "unknown_format",
            "",
            f"{NO_FORMAT} Its keys are: none.",
        ),
        (
            {"text": "a", "prompt": "b"},
            "unknown_format",
            "",
            "This line mixes the formats text and prompt_completion. Keep one of them.",
        ),
        (
            {"text": "a", "label": 1},
            "unknown_field",
            "label",
            "'label' is not a field of the text format. Remove it.",
        ),
        ({"text": 5}, "wrong_type", "text", "'text' must be a string."),
        (
            {"text": ""},
            "empty_field",
            "text",
            "'text' is empty. Fill it, or remove the line.",
        ),
        ({"prompt": "a"}, "missing_field", "completion", "'completion' is missing. Add it."),
        ({"completion": "a"}, "missing_field", "prompt", "'prompt' is missing. Add it."),
        (
            {"prompt": "a", "completion": ""},
            "empty_field",
            "completion",
            "'completion' is empty. Fill it, or remove the line.",
        ),
        (
            {"messages": {}},
            "wrong_type",
            "messages",
            "'messages' must be a list of messages.",
        ),
        (
            {"messages": []},
            "wrong_type",
            "messages",
            "'messages' must be a list of messages.",
        ),
        (
            {"tools": []},
            "wrong_type",
            "messages",
            "'messages' must be a list of messages.",
        ),
        (
            chat(USER, ASSISTANT, tools=["add"]),
            "wrong_type",
            "tools",
            "'tools' must be a list of objects.",
        ),
        (chat("Hi"), "wrong_type", "messages[0]", "This message is not a JSON object."),
        (
            chat(USER | {"contents": ""}),
            "unknown_field",
            "messages[0].contents",
            "'contents' is not a field of a message. Remove it.",
        ),
        (
            chat({"content": "Hi"}),
            "bad_role",
            "messages[0].role",
            "'role' is missing. Use one of system, developer, user, assistant, tool.",
        ),
        (
            chat(USER, {"role": ["user"], "content": "Hi"}),
            "bad_role",
            "messages[1].role",
            "['user'] is not a role. Use one of system, developer, user, assistant, tool.",
        ),
        (
            chat(USER | {"weight": 1}, ASSISTANT),
            "bad_weight",
            "messages[0].weight",
            "Only assistant messages can have a weight. Remove it.",
        ),
        (
            chat(USER, ASSISTANT | {"weight": 2}),
            "bad_weight",
            "messages[1].weight",
            "The weight is 2. Use 0 or 1.",
        ),
        (
            chat(USER, ASSISTANT | {"weight": True}),
            "bad_weight",
            "messages[1].weight",
            "The weight is True. Use 0 or 1.",
        ),
        (
            chat(USER, ASSISTANT | {"weight": [1]}),
            "bad_weight",
            "messages[1].weight",
            "The weight is [1]. Use 0 or 1.",
        ),
        (
            chat({"role": "user"}),
            "missing_field",
            "messages[0].content",
            "'content' is missing. Add it.",
        ),
        (
            chat({"role": "user", "content": 5}),
            "wrong_type",
            "messages[0].content",
            "'content' must be a string or a list of parts.",
        ),
        (
            chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            "unsupported_content",
            "messages[0].content[0]",
            'This part is not text. Keep only parts such as {"type": "text", "text": "..."}.',
        ),
        (
            chat(USER, {"role": "assistant", "content": ""}),
            "empty_field",
            "messages[1].content",
            "This answer is empty. Fill it, or remove it.",
        ),
        (
            chat(USER | {"tool_calls": [{}]}),
            "wrong_type",
            "messages[0].tool_calls",
            "'tool_calls' must be a list of objects, in an assistant message.",
        ),
        (
            chat(USER),
            "no_assistant_message",
            "messages",
            "There is no assistant message, so there is nothing to learn. Add one.",
        ),
        (
            chat(USER, ASSISTANT | {"weight": 0}),
            "no_trainable_tokens",
            "messages",
            "Every answer has weight 0, so there is nothing to learn. Set one to 1.",
        ),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_where(
    row: Any, code: str, path: str, message: str
) -> None:
    with pytest.raises(LineError) as refusal:
        parse(row)

    assert (refusal.value.code, refusal.value.path, str(refusal.value)) == (code, path, message)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b"{", "invalid_json", "Expecting property name enclosed in double quotes at column 2"),
        (b'{"text": NaN}', "invalid_json", "NaN is not JSON"),
        (b'{"text": "\xff"}', "not_utf8", "not UTF-8: invalid start byte at byte 10"),
    ],
)
def test_a_line_that_is_not_json_says_why(line: bytes, code: str, message: str) -> None:
    with pytest.raises(LineError) as refusal:
        parse_line(line)

    assert refusal.value.code == code
    assert str(refusal.value) == f"This line is not valid JSON: {message}."


def test_a_huge_key_is_not_repeated_whole() -> None:
    with pytest.raises(LineError) as refusal:
        parse({"text": "a", "x" * 10_000: 1})

    assert len(str(refusal.value)) < 200
    assert len(refusal.value.path) == 80
