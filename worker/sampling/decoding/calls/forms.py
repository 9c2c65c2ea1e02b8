"""The forms in which families of models write tool calls."""

# ruff: noqa: RUF001 - DeepSeek writes with characters that look like others

import re
from collections.abc import Callable
from dataclasses import dataclass

from app.core.sampling.messages import ToolCall
from worker.sampling.decoding.calls.python_calls import read_python_calls
from worker.sampling.decoding.calls.values import (
    MalformedCallError,
    Tools,
    call_of,
    make_call,
    read_json,
    typed,
)


@dataclass(frozen=True, slots=True)
class CallForm:
    """A form of tool calls."""

    opening: str
    """What calls begin with."""
    closing: str | None
    """What they end with; None if they end with the answer."""
    read: Callable[[str, Tools], list[ToolCall]]
    """Reads what is between opening and closing. Raises ValueError if it is no call."""
    is_bare: bool = False
    """Whether the opening is a part of the call, which then is the whole answer."""


def _read_object(body: str, _: Tools) -> list[ToolCall]:
    return [call_of(read_json(body))]


def _read_list(body: str, _: Tools) -> list[ToolCall]:
    values = read_json(body)
    if not isinstance(values, list) or not values:
        raise MalformedCallError("no list of calls")
    return [call_of(value) for value in values]


def _read_known(body: str, tools: Tools) -> list[ToolCall]:
    """A call or a list of calls of tools that exist, because JSON may also be an answer."""
    calls = (_read_list if body.startswith("[") else _read_object)(body, tools)
    if not all(call.name in tools for call in calls):
        raise MalformedCallError("no tool of the request")
    return calls


# Models write what these patterns read, for as long as they like. So each pattern must take time
# that grows with the text and no faster: what may repeat gives nothing back (`++`, `*+`), or ends
# with what cannot be a part of it.

_NAMED = re.compile(r"([^\[\]{}]++)(?:\[CALL_ID\]\s*+\w*+\s*+)?(?:\[ARGS\])?\s*+(\{.*+)", re.DOTALL)


def _read_named(body: str, _: Tools) -> list[ToolCall]:
    """Calls such as `find[ARGS]{"x": 1}`, each after an opening of its own."""
    found = [_matched(_NAMED, part.strip()) for part in body.split("[TOOL_CALLS]")]
    return [make_call(match[1], read_json(match[2])) for match in found]


_DEEPSEEK = re.compile(
    r"\s*+<｜tool▁call▁begin｜>"
    r"(?:function<｜tool▁sep｜>(?P<fenced>[^\n<]++)\n```json\n(?P<json>.*?)\n```"
    r"|(?P<name>[^<]++)<｜tool▁sep｜>(?P<arguments>.*?))<｜tool▁call▁end｜>\s*+",
    re.DOTALL,
)


def _read_deepseek(body: str, _: Tools) -> list[ToolCall]:
    return [
        make_call(match["fenced"] or match["name"], read_json(match["json"] or match["arguments"]))
        for match in _matched_all(_DEEPSEEK, body)
    ]


_FUNCTION = re.compile(r"<function=([^>\n]++)>(.*)</function>", re.DOTALL)
_PARAMETER = re.compile(r"\s*+<parameter=([^>\n]++)>\n?(.*?)\n?</parameter>\s*+", re.DOTALL)


def _read_function(body: str, tools: Tools) -> list[ToolCall]:
    match = _matched(_FUNCTION, body.strip())
    return [_written_call(match[1], _PARAMETER, match[2], tools)]


_KEYED = re.compile(r"\s*+([^\s<]++)(.*+)", re.DOTALL)
_ARGUMENT = re.compile(
    r"\s*+<arg_key>([^<]++)</arg_key>\s*+<arg_value>(.*?)</arg_value>\s*+", re.DOTALL
)


def _read_keyed(body: str, tools: Tools) -> list[ToolCall]:
    match = _matched(_KEYED, body)
    return [_written_call(match[1], _ARGUMENT, match[2], tools)]


def _written_call(name: str, argument: re.Pattern[str], body: str, tools: Tools) -> ToolCall:
    schema = tools.get(name, {})
    pairs = (match.groups() for match in _matched_all(argument, body)) if body.strip() else ()
    return make_call(name, {key: typed(value, schema, key) for key, value in pairs})


FORMS = (
    CallForm("<tool_call>", "</tool_call>", _read_object),  # Hermes, Qwen 2.5 and 3, Granite 4
    CallForm("<tool_call>", "</tool_call>", _read_function),  # Qwen3-Coder, Qwen 3.5, Nemotron 3
    CallForm("<tool_call>", "</tool_call>", _read_keyed),  # GLM 4.5
    CallForm("[TOOL_CALLS]", None, _read_list),  # Mistral v0.3
    CallForm("[TOOL_CALLS]", None, _read_named),  # Mistral Small 3
    CallForm("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", _read_deepseek),
    CallForm("<|tool_call_start|>", "<|tool_call_end|>", read_python_calls),  # LFM2
    CallForm("<TOOLCALL>", "</TOOLCALL>", _read_list),  # Nemotron Nano
    CallForm("<tool_calls>", "</tool_calls>", _read_list),  # Jamba
    CallForm("<function_calls>", "</function_calls>", read_python_calls),  # OLMo 3
    CallForm("[", None, _read_known, is_bare=True),  # xLAM
    CallForm("{", None, _read_known, is_bare=True),  # Llama 3.1 and 3.2
)
"""Every form that is known. The first that reads what a template writes is that of the template."""


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise MalformedCallError("malformed call")
    return match


def _matched_all(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The matches that a text consists of.

    Raises:
        MalformedCallError: there is something between them, or no match at all.
    """
    found: list[re.Match[str]] = []
    position = 0
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            raise MalformedCallError("malformed call")
        found.append(match)
        position = match.end()
    if not found:
        raise MalformedCallError("no call")
    return found
