# pyright: standard
"""Reads YAML as version 1.2 defines it, and remembers the line of every value.

PyYAML follows version 1.1, in which `1e-4` is a text, `no` is false and `2026-11-28` is a date. So
only its parser is used here: nothing but plain values is made of what it finds.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

MAX_BYTES = 256 * 1024
"""Maximum size of a file. A job with every hyperparameter takes two percent of it."""

_MAX_DEPTH = 20
"""Maximum number of levels of lists and mappings. A job has five."""

_PREFIX = "tag:yaml.org,2002:"

Path = tuple[str | int, ...]
"""Keys and positions that lead from the whole document to a value."""


class YamlError(Exception):
    """The text is not YAML, or uses a part of YAML that is not offered here.

    Attributes:
        line: number of the line, from 1. None if the error is about no single line.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """The value of a document, and where each part of it is."""

    value: Any
    """Mappings, lists, texts, numbers, booleans and null."""
    lines: dict[Path, int]
    """Line of each value, from 1. That of a value with a key is the line of the key."""
    texts: dict[Path, str]
    """Text of each value that is neither a mapping nor a list, without its quotes."""


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2's core schema does. It refuses aliases and deep nesting.

    An alias would let a small file stand for a huge value.
    """

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    _depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            raise YamlError(
                "Aliases such as *name are not offered. Write the value out.", line=line
            )
        if self._depth == _MAX_DEPTH:
            raise YamlError(f"Values are nested in more than {_MAX_DEPTH} levels.", line=line)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"{_PREFIX}{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def read_yaml(content: bytes) -> Document:
    """Read a file with one document. An empty file is null.

    Raises:
        YamlError: it cannot be read.
    """
    if len(content) > MAX_BYTES:
        raise YamlError(f"The file has {len(content):,} bytes; a job takes at most {MAX_BYTES:,}.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError("The text is not UTF-8. Save the file in UTF-8.", line=line) from None
    try:
        node = yaml.compose(text, Loader=_Loader)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError("The line has a control character. Remove it.", line=line) from None
    except yaml.MarkedYAMLError as error:
        raise _explain(error) from None
    reading = _Reading()
    value = None if node is None else reading.value_of(node, ())
    return Document(value, reading.lines, reading.texts)


def _explain(error: yaml.MarkedYAMLError) -> YamlError:
    mark = error.problem_mark or error.context_mark
    problem = str(error.problem or error.context)
    hint = " Indent with spaces, not with tabs." if r"'\t'" in problem else ""
    message = f"This is not YAML: {problem}.{hint}"
    return YamlError(message, line=None if mark is None else mark.line + 1)


class _Reading:
    """Makes plain values of nodes, and notes their places."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.texts: dict[Path, str] = {}

    def value_of(self, node: Node, path: Path) -> Any:
        match node:
            case MappingNode():
                return self._mapping(node, path)
            case SequenceNode():
                for index, item in enumerate(node.value):
                    self.lines[(*path, index)] = _line(item)
                return [
                    self.value_of(item, (*path, index)) for index, item in enumerate(node.value)
                ]
            case _:
                self.texts[path] = node.value
                return _scalar(node)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise YamlError(
                    "A key must be a word, not a list or mapping.", line=_line(key_node)
                )
            key, line = str(key_node.value), _line(key_node)
            if key in values:
                first = self.lines[(*path, key)]
                raise YamlError(
                    f"'{key:.80}' is given twice, first in line {first}. Keep one.", line=line
                )
            self.lines[(*path, key)] = line
            values[key] = self.value_of(value_node, (*path, key))
        return values


def _scalar(node: Node) -> str | float | bool | None:
    text: str = node.value
    try:
        match node.tag.removeprefix(_PREFIX):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
            case "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
            case tag:
                raise YamlError(f"The tag {tag:.80} is not offered. Remove it.", line=_line(node))
    except ValueError:
        raise YamlError(
            f"{text[:80]} is not a number that can be read.", line=_line(node)
        ) from None


def _line(node: Node) -> int:
    return node.start_mark.line + 1
