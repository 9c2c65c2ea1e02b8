"""Each request that means something else than what can be done is refused, by name."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.sampling.messages import MAX_CHOICES
from tests.standin_sampler import StandInSampler

pytestmark = pytest.mark.only_sqlite

Bad = tuple[str, dict[str, Any], str, str, str]
"""Path, what is changed in a valid body, and the code, the param and the message of the error."""

CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
    TEXT: {"model": "tiny", "prompt": "Hi"},
    RESPONSE: {"model": "tiny", "input": "Hi"},
}
UNSUPPORTED = "Invalid value for '{}': This is not supported here; leave it out."
ONLY = "Invalid value for '{}': Only {} is supported here; leave it out."
TOOL = {"type": "function", "function": {"name": "look"}}
TOOLS = {"tools": [TOOL]}
BAD_CHOICE = (
    "Invalid value for 'tool_choice': Use 'auto', 'none', 'required', or the name of one function, "
    'as in {"type": "function", "function": {"name": "..."}}.'
)
NEEDS_SCHEMA = "Give a schema with the type 'json_schema', and only with it."
NEEDS_STREAM = "Invalid value for 'stream_options': It needs 'stream' to be true."
TIERS = "'auto', 'default', 'flex', 'scale', 'priority', 'fast' or 'ultrafast'"
NOT_TEXT = 'This part is not text. Keep only parts such as {"type": "text", "text": "..."}.'
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
NOT_A_MESSAGE = (
    "'input[0]' is not a message of text, and nothing else is supported here. Give messages such "
    'as {"role": "user", "content": "..."}.'
)


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def earlier(**answer: Any) -> dict[str, Any]:
    """A conversation with an earlier answer of the model."""
    return {"messages": [*VALID[CHAT]["messages"], {"role": "assistant"} | answer]}


def unsupported(path: str, name: str, value: object) -> Bad:
    return (path, {name: value}, "unsupported_parameter", name, UNSUPPORTED.format(name))


def only(path: str, name: str, value: object, harmless: str) -> Bad:
    return (path, {name: value}, "unsupported_parameter", name, ONLY.format(name, harmless))


def out_of_range(name: str, value: object, told: str, path: str = CHAT) -> Bad:
    told = f"Invalid value for '{name}': Input should be {told}."
    return (path, {name: value}, "invalid_value", name, told)


BAD: list[Bad] = [
    unsupported(CHAT, "audio", {"voice": "a", "format": "mp3"}),
    unsupported(CHAT, "functions", [{"name": "a"}]),
    unsupported(CHAT, "function_call", "auto"),
    unsupported(CHAT, "prediction", {"type": "content", "content": "a"}),
    unsupported(CHAT, "web_search_options", {}),
    unsupported(CHAT, "moderation", {"model": "a"}),
    only(CHAT, "modalities", ["audio"], "['text']"),
    only(CHAT, "reasoning_effort", "high", "'none'"),
    only(CHAT, "verbosity", "low", "'medium'"),
    only(CHAT, "store", "yes", "False"),
    unsupported(TEXT, "suffix", "a"),
    only(TEXT, "best_of", 2, "1"),
    unsupported(RESPONSE, "previous_response_id", "resp_1"),
    unsupported(RESPONSE, "conversation", "conv_1"),
    unsupported(RESPONSE, "prompt", {"id": "pmpt_1"}),
    unsupported(RESPONSE, "reasoning", {"effort": "low"}),
    unsupported(RESPONSE, "context_management", [{"type": "compaction"}]),
    only(RESPONSE, "background", 1, "False"),
    only(RESPONSE, "truncation", "auto", "'disabled'"),
    only(RESPONSE, "tools", [TOOL], "[]"),
    (
        RESPONSE,
        {"tool_choice": "required"},
        "unsupported_parameter",
        "tool_choice",
        "Invalid value for 'tool_choice': Tools are not supported here; leave it out.",
    ),
    out_of_range("temperature", 2.1, "less than or equal to 2"),
    out_of_range("temperature", -0.1, "greater than or equal to 0"),
    out_of_range("temperature", "hot", "a valid number"),
    out_of_range("top_p", -0.1, "greater than or equal to 0"),
    out_of_range("top_p", 1.5, "less than or equal to 1"),
    out_of_range("max_tokens", 0, "greater than or equal to 1"),
    out_of_range("max_completion_tokens", 1.5, "a valid integer"),
    out_of_range("max_output_tokens", 0, "greater than or equal to 1", RESPONSE),
    out_of_range("n", MAX_CHOICES + 1, "less than or equal to 4"),
    out_of_range("n", 0, "greater than or equal to 1"),
    out_of_range("seed", 2**63, f"less than {2**63}"),
    out_of_range("logprobs", 5, "a valid boolean"),
    out_of_range("logprobs", 6, "less than or equal to 5", TEXT),
    out_of_range("top_logprobs", 21, "less than or equal to 20"),
    out_of_range("frequency_penalty", 2.5, "less than or equal to 2"),
    out_of_range("presence_penalty", -2.5, "greater than or equal to -2"),
    out_of_range("stream", "yes", "a valid boolean"),
    out_of_range("service_tier", "gold", TIERS),
    (CHAT, {"stream_options": {}}, "invalid_value", "stream_options", NEEDS_STREAM),
    (
        RESPONSE,
        {"stream": False, "stream_options": {"include_obfuscation": False}},
        "invalid_value",
        "stream_options",
        NEEDS_STREAM,
    ),
    (
        RESPONSE,
        {"prompt_cache_options": {"mode": "implicit", "prewarm": True}},
        "unsupported_parameter",
        "prompt_cache_options.prewarm",
        ONLY.format("prompt_cache_options.prewarm", "False"),
    ),
    (
        CHAT,
        {"max_tokens": 5, "max_completion_tokens": 6},
        "invalid_value",
        "max_tokens",
        (
            "Invalid value for 'max_tokens': It differs from 'max_completion_tokens'; give only "
            "one of them."
        ),
    ),
    (
        CHAT,
        {"top_logprobs": 5},
        "invalid_value",
        "top_logprobs",
        "Invalid value for 'top_logprobs': It needs 'logprobs' to be true.",
    ),
    (
        CHAT,
        {"stop": ["a", "b", "c", "d", "e"]},
        "invalid_value",
        "stop",
        "Invalid value for 'stop': List should have at most 4 items after validation, not 5.",
    ),
    (
        CHAT,
        {"stop": [""]},
        "invalid_value",
        "stop[0]",
        "Invalid value for 'stop[0]': String should have at least 1 character.",
    ),
    (
        CHAT,
        {"logit_bias": {"7": 101}},
        "invalid_value",
        "logit_bias.7",
        "Invalid value for 'logit_bias.7': Input should be less than or equal to 100.",
    ),
    (
        CHAT,
        {"logit_bias": {"the": 1}},
        "invalid_value",
        "logit_bias",
        "Invalid key in 'logit_bias': String should match pattern '^[0-9]{1,9}$'.",
    ),
    (
        CHAT,
        {"logit_bias": dict.fromkeys(map(str, range(101)), 1)},
        "invalid_value",
        "logit_bias",
        (
            "Invalid value for 'logit_bias': Dictionary should have at most 100 items after "
            "validation, not 101."
        ),
    ),
    (
        CHAT,
        {"logit_bias": dict.fromkeys(map(str, range(1001)), 1)},
        "json_too_complex",
        "logit_bias",
        "The body has an object with more than 1,000 keys in 'logit_bias'. See docs/api.md.",
    ),
    (
        CHAT,
        {"temprature": 1},
        "unknown_parameter",
        "temprature",
        "Unknown parameter: 'temprature'. Did you mean 'temperature'?",
    ),
    (
        CHAT,
        {"tools": [{"type": "custom"}]},
        "invalid_value",
        "tools[0].type",
        "Invalid value for 'tools[0].type': Input should be 'function'. And 1 more; see 'errors'.",
    ),
    (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "invalid_value",
        "tools[0].function.name",
        (
            "Invalid value for 'tools[0].function.name': String should match pattern "
            "'^[a-zA-Z0-9_-]{1,64}$'."
        ),
    ),
    (CHAT, TOOLS | {"tool_choice": "any"}, "invalid_value", "tool_choice", BAD_CHOICE),
    (
        CHAT,
        TOOLS | {"tool_choice": {"type": "function", "function": {"name": "look", "at": 1}}},
        "invalid_value",
        "tool_choice",
        BAD_CHOICE,
    ),
    (
        CHAT,
        TOOLS | {"tool_choice": {"type": "function", "function": {"name": "look"}, "at": 1}},
        "invalid_value",
        "tool_choice",
        BAD_CHOICE,
    ),
    (
        CHAT,
        {"tools": [TOOL, {"type": "function", "function": {"name": "run", "strict": True}}]},
        "unsupported_parameter",
        "tools[1].function.strict",
        (
            "'tools[1].function.strict': Only a call that 'tool_choice' forces is held to the "
            "schema of its parameters. Force the call, or leave 'strict' out."
        ),
    ),
    (
        CHAT,
        TOOLS | {"tool_choice": {"type": "function", "function": {"name": "run"}}},
        "invalid_value",
        "tool_choice",
        "'tools' has no function 'run', which 'tool_choice' names.",
    ),
    (
        CHAT,
        {"tool_choice": "required"},
        "invalid_value",
        "tool_choice",
        (
            "'required' is supported with exactly one tool. Name the function that has to be "
            'called, as in {"type": "function", "function": {"name": "..."}}, or use \'auto\'.'
        ),
    ),
    (
        CHAT,
        TOOLS | {"tool_choice": "required", "response_format": {"type": "json_object"}},
        "invalid_value",
        "response_format",
        (
            "'tool_choice' forces a call, so the answer has no format of its own. Leave "
            "'response_format' out."
        ),
    ),
    (
        CHAT,
        {"response_format": {"type": "json_schema"}},
        "invalid_value",
        "response_format.json_schema",
        f"Invalid value for 'response_format.json_schema': {NEEDS_SCHEMA}",
    ),
    (
        CHAT,
        {"response_format": {"type": "xml"}},
        "invalid_value",
        "response_format.type",
        (
            "Invalid value for 'response_format.type': Input should be 'text', 'json_object' or "
            "'json_schema'."
        ),
    ),
    (
        RESPONSE,
        {"text": {"format": {"type": "text", "schema": {}}}},
        "invalid_value",
        "text.format.schema",
        f"Invalid value for 'text.format.schema': {NEEDS_SCHEMA}",
    ),
    (
        CHAT,
        {"messages": []},
        "invalid_value",
        "messages",
        "Invalid value for 'messages': List should have at least 1 item after validation, not 0.",
    ),
    (
        CHAT,
        {"messages": "Hi"},
        "invalid_value",
        "messages",
        "Invalid value for 'messages': Input should be a valid list.",
    ),
    (
        CHAT,
        {"messages": [{"role": "pirate", "content": "a"}]},
        "invalid_value",
        "messages[0].role",
        (
            "'messages[0].role': 'pirate' is not a role. Use one of system, developer, user, "
            "assistant, tool."
        ),
    ),
    (
        CHAT,
        {"messages": [{"role": "user"}]},
        "missing_required_parameter",
        "messages[0].content",
        "'messages[0].content': 'content' is missing. Add it.",
    ),
    (
        CHAT,
        user([{"type": "text", "text": "a"}, IMAGE]),
        "unsupported_content",
        "messages[0].content[1]",
        f"'messages[0].content[1]': {NOT_TEXT}",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "a", "colour": "red"}]},
        "unknown_parameter",
        "messages[0].colour",
        "'messages[0].colour': 'colour' is not a field of a message. Remove it.",
    ),
    (
        CHAT,
        earlier(content="a", weight=0),
        "unknown_parameter",
        "messages[1].weight",
        "'messages[1].weight': A weight has a meaning in training files alone. Remove it.",
    ),
    (
        CHAT,
        earlier(content=None, refusal="No."),
        "unsupported_content",
        "messages[1].refusal",
        "'messages[1].refusal': Models do not read 'refusal'. Put its text in 'content'.",
    ),
    (
        CHAT,
        user([{"type": "text", "text": "a", "colour": "red"}]),
        "unknown_parameter",
        "messages[0].content[0].colour",
        (
            "'messages[0].content[0].colour': 'colour' is not a field of a part of text. "
            "Remove it."
        ),
    ),
    (
        TEXT,
        {"prompt": ["a", "b"]},
        "unsupported_parameter",
        "prompt",
        "Invalid value for 'prompt': Several prompts are not supported: send one a request.",
    ),
    (
        TEXT,
        {"prompt": [1, -1]},
        "invalid_value",
        "prompt",
        "Invalid value for 'prompt': Give a text, or a list of the ids of its tokens.",
    ),
    (
        RESPONSE,
        {"input": 5},
        "invalid_value",
        "input",
        "Invalid value for 'input': Give a text, or a list of messages.",
    ),
    (
        RESPONSE,
        {"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]},
        "unsupported_content",
        "input[0]",
        NOT_A_MESSAGE,
    ),
    (
        RESPONSE,
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "a"}]}]},
        "unsupported_content",
        "input[0].content[0]",
        f"'input[0].content[0]': {NOT_TEXT}",
    ),
    (
        RESPONSE,
        {"input": [{"role": "user", "content": [{"type": ["input_text"]}]}]},
        "unsupported_content",
        "input[0].content[0]",
        f"'input[0].content[0]': {NOT_TEXT}",
    ),
    (
        RESPONSE,
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "b": 1}]}]},
        "unknown_parameter",
        "input[0].content[0].b",
        "'input[0].content[0].b': 'b' is not a field of a part of text. Remove it.",
    ),
    (
        RESPONSE,
        {"include": ["reasoning.encrypted_content"]},
        "invalid_value",
        "include[0]",
        "Invalid value for 'include[0]': Input should be 'message.output_text.logprobs'.",
    ),
]


def test_every_bad_request_is_refused_by_name(client: TestClient, sampler: StandInSampler) -> None:
    wrong: list[object] = []
    for path, changes, code, param, message in BAD:
        answer = client.post(path, json=VALID[path] | changes)
        error = answer.json()["error"]
        told = (answer.status_code, error["code"], error["param"], error["message"])
        if told != (400, code, param, message):
            wrong.append((changes, told))

    assert len(BAD) >= 60
    assert wrong == []
    assert sampler.asked == []


@pytest.mark.parametrize("path", VALID)
def test_a_model_that_there_is_not(client: TestClient, path: str) -> None:
    for name in ("gpt-5", "absent", "ft:tiny:tunery::x", "ft:tiny:tunery::x:ckpt-step-1"):
        answer = client.post(path, json=VALID[path] | {"model": name})

        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert name in error["message"]
