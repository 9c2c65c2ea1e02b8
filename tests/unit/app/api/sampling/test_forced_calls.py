"""Calls that `tool_choice` forces, and what ends them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.sampling.messages import Accepted, Delta, Finished, FinishReason
from tests.standin_sampler import Asked, Said, StandInSampler

FORCED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "stop": "Bern",
}


def ask_whole(client: TestClient) -> tuple[str, str]:
    """The arguments of the call, and why it ended."""
    choice = client.post("/v1/chat/completions", json=FORCED).json()["choices"][0]
    return choice["message"]["tool_calls"][0]["function"]["arguments"], choice["finish_reason"]


def ask_streamed(client: TestClient) -> tuple[str, str]:
    """As `ask_whole`."""
    answer = client.post("/v1/chat/completions", json=FORCED | {"stream": True})
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    choices = [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]
    calls = [choice["delta"].get("tool_calls") for choice in choices]
    arguments = "".join(call[0]["function"]["arguments"] for call in calls if call)
    return arguments, choices[-1]["finish_reason"]


@pytest.mark.parametrize("ask", [ask_whole, ask_streamed])
@pytest.mark.parametrize(
    ("text", "ended_by", "reason"),
    [
        pytest.param('{"city": "Rome"}', "stop", "tool_calls", id="whole"),
        pytest.param('{"city": "', "stop", "stop", id="cut by a stop text"),
        pytest.param('{"city": "', "length", "length", id="cut by the limit"),
        pytest.param("", "stop", "stop", id="cut before it began"),
    ],
)
def test_a_call_is_told_as_one_only_if_it_is_whole(
    client: TestClient,
    sampler: StandInSampler,
    ask: Any,
    text: str,
    ended_by: FinishReason,
    reason: str,
) -> None:
    def answer(_: Asked) -> Iterator[Said]:
        yield Accepted(prompt_tokens=1, cached_tokens=0)
        yield Delta(choice=0, text=text)
        yield Finished(choice=0, reason=ended_by, tokens=1)

    sampler.script = answer

    assert ask(client) == (text, reason)
