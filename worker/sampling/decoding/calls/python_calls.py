"""Reads calls that are written as in Python, such as `[find(x=1), stop()]`, or one a line."""

import ast
from typing import Any

from app.core.sampling.messages import ToolCall
from worker.sampling.decoding.calls.values import MalformedCallError, Tools, make_call

_MAX_CHARACTERS = 64 * 1024
"""Maximum length of calls: Python's parser is slow with some texts, and nothing interrupts it."""

_JSON_WORDS = {"true": True, "false": False, "null": None}


def read_python_calls(body: str, _: Tools) -> list[ToolCall]:
    """The calls in a list, or in lines. Nothing is run.

    Raises:
        MalformedCallError: something is no call, an argument is not a plain value, or they are
            longer than any that a model means.
    """
    if len(body) > _MAX_CHARACTERS:
        raise MalformedCallError("too long")
    try:
        match ast.parse(body.strip()).body:
            case [ast.Expr(value=ast.List(elts=[_, *_] as calls))]:
                return [_read_call(call) for call in calls]
            case [_, *_] as lines:
                return [
                    _read_call(line.value if isinstance(line, ast.Expr) else line) for line in lines
                ]
            case _:
                raise MalformedCallError("no call")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise MalformedCallError("malformed call") from error


def _read_call(node: ast.AST) -> ToolCall:
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
