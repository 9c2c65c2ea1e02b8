"""Reads the calls and the values in what a model has written."""

import json
import re
from collections.abc import Mapping
from typing import Any

from app.core import strict_json
from app.core.sampling.messages import ToolCall

Tools = Mapping[str, Mapping[str, Any]]
"""The JSON schema of the parameters of each tool, by its name."""

_NAME = re.compile(r"[\w.:/-]{1,128}")

_PYTHON_WORDS = {"True": True, "False": False, "None": None}


class MalformedCallError(ValueError):
    """What a model has written is no call."""


def schemas_of(tools: tuple[dict[str, Any], ...]) -> Tools:
    """The schemas of the tools of a request."""
    functions = [tool.get("function") for tool in tools]
    return {
        str(function.get("name")): function.get("parameters") or {}
        for function in functions
        if isinstance(function, dict)
    }


def read_json(text: str) -> Any:
    """The value that a text is.

    Raises:
        ValueError: it is not JSON.
    """
    return strict_json.loads(text.strip().encode())


def make_call(name: object, arguments: object) -> ToolCall:
    """A call of a tool.

    Raises:
        MalformedCallError: it has no name, or its arguments are not an object.
        ValueError: the arguments cannot be written as JSON.
    """
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise MalformedCallError("a call needs a name and an object of arguments")
    if not _NAME.fullmatch(name.strip()):
        raise MalformedCallError("no name of a function")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # a call in Python may have half of a surrogate pair
    return ToolCall(name=name.strip(), arguments=text)


def call_of(value: object) -> ToolCall:
    """The call that an object is, with `arguments` or, as Llama calls them, `parameters`.

    Raises:
        MalformedCallError: it is none.
    """
    if not isinstance(value, dict):
        raise MalformedCallError("a call is an object")
    return make_call(value.get("name"), value.get("arguments", value.get("parameters")))


def typed(text: str, schema: Mapping[str, Any], name: str) -> Any:
    """A value that is written without quotes, by the type that the schema gives it.

    Args:
        text: the value.
        schema: of the parameters of the tool.
        name: of the parameter.
    """
    properties = schema.get("properties")
    declared = properties.get(name) if isinstance(properties, dict) else None
    if isinstance(declared, dict) and declared.get("type") == "string":
        return text
    if text in _PYTHON_WORDS:
        return _PYTHON_WORDS[text]
    try:
        return read_json(text)
    except ValueError:
        return text
