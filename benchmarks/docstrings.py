"""Training data that every Python has: what the docstrings of its standard library say.

A question ("What does json.dumps do in Python?") and its answer, the docstring: real text, as
varied in length as people's own data, and the same on every machine with the same Python. Other
kinds of data are made from the same text.
"""

import ast
import inspect
import json
import math
import random
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

_NOT_LIBRARY = {"antigravity", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"}
_MIN_CHARACTERS = 60
"""A shorter docstring says nothing that could be learned."""
_LENGTHS = (
    (0.5, range(_MIN_CHARACTERS, 350)),
    (0.25, range(350, 1200)),
    (0.25, range(1200, 10**6)),
)
"""Shares of the examples, and how many characters these have. Among all docstrings long ones are
rarer than in data that people train on, and without them padding would matter even more."""

DataKind = Literal["docstrings", "one-line", "system-prompt", "long", "pairs"]
"""Whole docstrings; their first lines; the same after a system prompt; all docstrings of a module
as one answer; short docstrings, each with that of something else as a worse answer."""

_LONG = 7000
"""Fewest characters of the docstrings of a module that form a long answer."""

SYSTEM_PROMPT = (
    "You are the assistant of a team that writes and reviews Python programs. Answer questions "
    "about the standard library in one short sentence, in plain English, without examples and "
    "without code. Name no function that does not exist in it. If the question is about a class, "
    "say what its instances are for; if it is about a function, say what it returns or changes. Do "
    "not repeat the question, do not greet, and do not offer any more help."
)
"""80 words."""

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Example:
    question: str
    answer: str
    system: str = ""
    worse_answer: str = ""
    """What is not preferred; empty in data for supervised training."""

    @property
    def prompt(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.question}]

    @property
    def messages(self) -> list[dict[str, str]]:
        return [*self.prompt, _answer(self.answer)]

    @property
    def preference(self) -> dict[str, object]:
        """The row in OpenAI's form, for `pairs`."""
        return {
            "input": {"messages": self.prompt},
            "preferred_output": [_answer(self.answer)],
            "non_preferred_output": [_answer(self.worse_answer)],
        }


def choose_examples(number: int, *, seed: int, kind: DataKind = "docstrings") -> list[Example]:
    """As many docstrings, each of them once: which, and in what order, `seed` alone decides.

    Raises:
        ValueError: the standard library has not so many.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    if kind == "long":
        return _choose_modules(number, chance)
    found = _read_library()
    if kind == "pairs":
        return _choose_pairs(number, found, chance)
    names: list[str] = []
    for share, characters in _LENGTHS:
        fitting = sorted(name for name, text in found.items() if len(text) in characters)
        names += chance.sample(fitting, math.ceil(number * share))
    chance.shuffle(names)
    system = SYSTEM_PROMPT if kind == "system-prompt" else ""
    return [
        Example(
            f"What does {name} do in Python?",
            found[name] if kind == "docstrings" else found[name].splitlines()[0],
            system,
        )
        for name in names[:number]
    ]


def _choose_pairs(number: int, found: dict[str, str], chance: random.Random) -> list[Example]:
    """Pairs whose prompt has about 200 tokens: the system prompt, and a text to be told apart."""
    short, longer = (
        sorted(name for name, text in found.items() if len(text) in characters)
        for _, characters in _LENGTHS[:2]
    )
    names = chance.sample(short, 2 * number)
    others = chance.sample(longer, number)
    triples = zip(names[:number], names[number:], others, strict=True)
    return [
        Example(
            f"{other} says: {found[other][:350]} That is not what I look for. "
            f"What does {name} do in Python?",
            found[name],
            SYSTEM_PROMPT,
            found[worse],
        )
        for name, worse, other in triples
    ]


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _choose_modules(number: int, chance: random.Random) -> list[Example]:
    texts: dict[str, list[str]] = {}
    for name, text in _read_library().items():
        texts.setdefault(name.partition(".")[0], []).append(f"{name}: {text}")
    joined = {name: "\n\n".join(parts) for name, parts in texts.items()}
    names = chance.sample(sorted(n for n, text in joined.items() if len(text) >= _LONG), number)
    return [Example(f"What is in Python's {name}?", joined[name]) for name in names]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@cache
def _read_library() -> dict[str, str]:
    """Every public docstring, by the name of what it is of."""
    return dict(_walk_library())


def _walk_library() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = parts[:-1] if parts[-1] == "__init__" else parts
        if _is_public(module):
            yield from _read_docstrings(ast.parse(path.read_bytes()), ".".join(module))


def _is_public(module: tuple[str, ...]) -> bool:
    return (
        bool(module)
        and module[0] in sys.stdlib_module_names
        and _NOT_LIBRARY.isdisjoint({*module, module[0]})
        and not any(part.startswith("_") or part in {"test", "tests"} for part in module)
    )


def _read_docstrings(node: _Documented, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node, clean=False)
    if text and len(cleaned := inspect.cleandoc(text)) >= _MIN_CHARACTERS:
        yield name, cleaned
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, _Documented) and not child.name.startswith("_"):
            yield from _read_docstrings(child, f"{name}.{child.name}")
