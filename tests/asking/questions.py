"""What tests ask the model of `conftest.py`, and how."""

from typing import Any

import openai

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 7}'}}
CALLING = {
    "messages": [{"role": "user", "content": "Look."}, {"role": "assistant", "tool_calls": [CALL]}],
    "tools": [TOOL],
}
STEPS, EARLIER = 300, 60
WHO: list[Any] = [{"role": "user", "content": "Who are you?"}]
LOOK: list[Any] = [{"role": "user", "content": "Look."}]
ANSWER = "I am red."


def greedy(client: openai.OpenAI, model: str, messages: list[Any], **changes: Any) -> Any:
    """The greedy answer of a model."""
    usual: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 100}
    return client.chat.completions.create(model=model, messages=messages, **(usual | changes))


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content
