"""Reads calls that are written as in Python, such as `[find(x=1), stop()]`."""

import ast
from typing import Any

from app.core.sampling.messages import ToolCall
from worker.sampling.decoding.calls.values import MalformedCallError, Tools, make_call

_JSON_WORDS = {"true": True, "false": False, "null": None}


def read_python_calls(body: str, _: Tools) -> list[ToolCall]:
    """The calls in a list. Nothing is run.

    Raises:
        MalformedCallError: it is no list of calls, or an argument is not a plain value.
    """
    try:
        tree = ast.parse(body.strip(), mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            raise MalformedCallError("no list of calls")
        return [_read_call(node) for node in tree.elts]
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise MalformedCallError("malformed call") from error


def _read_call(node: ast.expr) -> ToolCall:
    match node:
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return make_call(name, {str(word.arg): _read_value(word.value) for word in keywords})
        case _:
            raise MalformedCallError("no call")


def _read_value(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=word) if word in _JSON_WORDS:
            return _JSON_WORDS[word]
        case ast.List(elts=items):
            return [_read_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {str(ast.literal_eval(key)): _read_value(value) for key, value in pairs if key}
        case _:
            value = ast.literal_eval(node)
            if not isinstance(value, str | int | float | None):
                raise MalformedCallError("no plain value")
            return value
