"""Requests of the stock client, each with what it has to ask of the sampler.

Whatever a request leaves out, and whatever has no effect, must reach the sampler as its default. So
everything that is not named here is a default.
"""

from typing import Any, NamedTuple

from app.core.sampling.messages import Ask
from app.schemas.sampling.completions import DEFAULT_MAX_TOKENS

SAID = "ahoy to you "
HI: list[Any] = [{"role": "user", "content": "ahoy to you"}]
BRIEF = {"role": "system", "content": "Be brief."}
AHOY = {"role": "assistant", "content": "Ahoy."}
EMPTY: dict[str, Any] = {"role": "assistant", "content": ""}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LOOK: dict[str, Any] = {"name": "look", "parameters": SCHEMA}
TOOL = {"type": "function", "function": LOOK}
STRICT_TOOL = {"type": "function", "function": LOOK | {"strict": True}}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(150)}}


class StockRequest(NamedTuple):
    fields: dict[str, Any]
    """Parameters beside the model and what it answers."""
    parameters: dict[str, Any] = {}
    """Sampling parameters that reach the sampler."""
    prompt: dict[str, Any] = {}
    """What the prompt has beside, or instead of, the text of a plain request."""
    others: dict[str, Any] = {}
    """Fields of `Ask`."""


CHATS = {
    "plain": StockRequest({}),
    "developer": StockRequest(
        {"messages": [{"role": "developer", "content": "Be brief."}, *HI]},
        prompt={"messages": [BRIEF, *HI]},
    ),
    "several turns": StockRequest(
        {"messages": [*HI, AHOY | {"refusal": None}, *HI]}, prompt={"messages": [*HI, AHOY, *HI]}
    ),
    "an earlier answer that is empty": StockRequest(
        {"messages": [*HI, EMPTY, *HI]}, prompt={"messages": [*HI, EMPTY, *HI]}
    ),
    "an earlier answer that is null": StockRequest(
        {"messages": [*HI, EMPTY | {"content": None, "annotations": []}, *HI]},
        prompt={"messages": [*HI, EMPTY, *HI]},
    ),
    "parts": StockRequest(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "text",
                            "text": "ahoy ",
                            "prompt_cache_breakpoint": {"mode": "explicit"},
                        },
                        {"type": "text", "text": "to you"},
                    ],
                }
            ]
        }
    ),
    "greedy": StockRequest({"temperature": 0}, {"temperature": 0}),
    "nucleus": StockRequest(
        {"temperature": 1.5, "top_p": 0.5}, {"temperature": 1.5, "top_p": 0.5}
    ),
    "smallest nucleus": StockRequest({"top_p": 0}, {"temperature": 0}),
    "limit": StockRequest({"max_tokens": 10}, {"max_tokens": 10}),
    "newer limit": StockRequest({"max_completion_tokens": 10}, {"max_tokens": 10}),
    "both limits": StockRequest(
        {"max_completion_tokens": 10, "max_tokens": 10}, {"max_tokens": 10}
    ),
    "stop": StockRequest({"stop": "\n"}, {"stop": ["\n"]}),
    "stops": StockRequest({"stop": ["a", "b", "c", "d"]}, {"stop": ["a", "b", "c", "d"]}),
    "seed": StockRequest({"seed": -7}, {"seed": -7}),
    "answers": StockRequest({"n": 4}, others={"choices": 4}),
    "penalties": StockRequest(
        {"frequency_penalty": -2, "presence_penalty": 0.5},
        {"frequency_penalty": -2, "presence_penalty": 0.5},
    ),
    "bias": StockRequest(
        {"logit_bias": {"50256": -100, "7": 1}}, {"logit_bias": {"50256": -100, "7": 1}}
    ),
    "logprobs": StockRequest({"logprobs": True}, {"top_logprobs": 0}),
    "top logprobs": StockRequest({"logprobs": True, "top_logprobs": 3}, {"top_logprobs": 3}),
    "tools": StockRequest({"tools": [TOOL], "parallel_tool_calls": True}, prompt={"tools": [TOOL]}),
    "tools, not to be called": StockRequest(
        {"tools": [STRICT_TOOL], "tool_choice": "none"}, prompt={"tool_choice": "none"}
    ),
    "JSON": StockRequest({"response_format": {"type": "json_object"}}, {"form": {}}),
    "text": StockRequest({"response_format": {"type": "text"}}),
    "schema": StockRequest(
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
            }
        },
        {"form": {"json_schema": SCHEMA}},
    ),
    "schema of many properties": StockRequest(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WIDE}}},
        {"form": {"json_schema": WIDE}},
    ),
    "what has no effect": StockRequest(
        {
            "user": "u",
            "metadata": {"a": "b"},
            "store": False,
            "service_tier": "auto",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
            "modalities": ["text"],
            "verbosity": "medium",
            "reasoning_effort": "none",
        }
    ),
    "nulls": StockRequest(
        {"temperature": None, "stop": None, "n": None, "seed": None, "logit_bias": None}
    ),
}

COMPLETIONS = {
    "plain": StockRequest({}),
    "list of one": StockRequest({"prompt": ["ahoy to you"]}),
    "echo": StockRequest({"echo": True}, others={"echoes": True}),
    "log-probabilities": StockRequest({"logprobs": 2}, {"top_logprobs": 2}),
    "answers": StockRequest(
        {"n": 2, "best_of": 1, "seed": 3, "user": "u"}, {"seed": 3}, others={"choices": 2}
    ),
    "limits": StockRequest(
        {"max_tokens": 20, "stop": ["x"], "temperature": 0.0, "top_p": 0.1},
        {"max_tokens": 20, "stop": ["x"], "temperature": 0, "top_p": 0.1},
    ),
    "penalties": StockRequest(
        {"frequency_penalty": 2, "presence_penalty": -0.5, "logit_bias": {"7": 1}},
        {"frequency_penalty": 2, "presence_penalty": -0.5, "logit_bias": {"7": 1}},
    ),
}

RESPONSES = {
    "plain": StockRequest({}),
    "instructions": StockRequest(
        {"instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.5},
        {"max_tokens": 9, "temperature": 0.5},
        prompt={"messages": [BRIEF, *HI]},
    ),
    "messages": StockRequest(
        {"input": [{"role": "developer", "content": "Be brief."}, *HI]},
        prompt={"messages": [BRIEF, *HI]},
    ),
    "parts": StockRequest(
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "ahoy to you"}]},
            ]
        }
    ),
    "an earlier answer": StockRequest(
        {
            "input": [
                *HI,
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                    ],
                },
                *HI,
            ]
        },
        prompt={"messages": [*HI, EMPTY, *HI]},
    ),
    "nucleus": StockRequest({"top_p": 0.25}, {"top_p": 0.25}),
    "log-probabilities": StockRequest(
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"top_logprobs": 2}
    ),
    "JSON": StockRequest({"text": {"format": {"type": "json_object"}}}, {"form": {}}),
    "schema": StockRequest(
        {
            "text": {
                "format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True},
                "verbosity": "medium",
            }
        },
        {"form": {"json_schema": SCHEMA}},
    ),
    "what has no effect": StockRequest(
        {
            "store": False,
            "metadata": {"a": "b"},
            "truncation": "disabled",
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "user": "u",
        }
    ),
}


def ask_of_messages(request: StockRequest) -> dict[str, Any]:
    """What a request for a chat completion or a response has to ask, as `without_defaults`."""
    return _ask(request, {"messages": HI}, {})


def ask_of_text(request: StockRequest) -> dict[str, Any]:
    """What a request for a completion has to ask, as `without_defaults`."""
    return _ask(request, {"text": "ahoy to you"}, {"max_tokens": DEFAULT_MAX_TOKENS})


def _ask(
    request: StockRequest, prompt: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    parameters = parameters | request.parameters
    told = {"parameters": parameters} if parameters else {}
    return {"prompt": prompt | request.prompt} | told | request.others


def without_defaults(ask: Ask) -> dict[str, Any]:
    """What was asked, in JSON, without the model and without what is as if it were left out."""
    of_the_model = {"project_id", "base_model", "base_model_sha256", "adapter"}
    return ask.model_dump(mode="json", exclude=of_the_model, exclude_defaults=True)
