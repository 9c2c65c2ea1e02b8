"""Prints how large and how tangled the code is: `python benchmarks/house.py [CHECKOUT]`.

It reads any checkout of this project, so that two commits can be compared with `git worktree`.
Nothing is imported or run. An empty file, such as most `__init__.py`, does not count as a module.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

PATH_OF_A_JOB = ("app.api.v1.fine_tuning_jobs", "worker.loop", "worker.training.recipe")
"""The three modules that a job passes through. They and all that they import are its path."""

BACKENDS = {"app.core.db.sqlite", "app.core.db.postgresql"}
DIALECT_TEST = re.compile(r"dialect\.name|\bis_sqlite\(|get_backend_name\(|drivername")


def main(root: Path) -> None:
    sources = dict(read_modules(root))
    trees = {name: ast.parse(source) for name, source in sources.items()}
    path = follow_imports(PATH_OF_A_JOB, trees)
    lengths = sorted(length for source in sources.values() for length in function_lengths(source))
    folders = Counter(name.rpartition(".")[0] for name in sources)
    largest, files = folders.most_common(1)[0]
    dialect_tests = sum(
        len(DIALECT_TEST.findall(source))
        for name, source in sources.items()
        if name not in BACKENDS
    )
    rows = {
        "modules in app and worker": len(sources),
        "lines in app and worker": sum(map(count_lines, sources.values())),
        "modules from POST to adapter": len(path),
        "lines from POST to adapter": sum(count_lines(sources[name]) for name in path),
        "longest module, lines": max(map(count_lines, sources.values())),
        f"files in the largest folder ({largest})": files,
        "functions": len(lengths),
        "function lines, median": percentile(lengths, 0.5),
        "function lines, p90": percentile(lengths, 0.9),
        "function lines, p99": percentile(lengths, 0.99),
        'docstrings that begin with "Of"': sum(count_fragments(tree) for tree in trees.values()),
        "dialect tests outside the backends": dialect_tests,
    }
    for label, value in rows.items():
        print(f"{value:>7,}  {label}")


def read_modules(root: Path) -> Iterator[tuple[str, str]]:
    for package in ("app", "worker"):
        for file in sorted((root / package).rglob("*.py")):
            source = file.read_text()
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            if source.strip():
                yield name.removesuffix(".__init__"), source


def follow_imports(starts: tuple[str, ...], trees: Mapping[str, ast.Module]) -> set[str]:
    reached: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name in trees and name not in reached:
            reached.add(name)
            waiting += imported_names(trees[name])
    return reached


def imported_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def function_lengths(source: str) -> Iterator[int]:
    """Lines of each function that hold code: no docstring, no blank line, no comment."""
    lines = [line.strip() for line in source.splitlines()]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start, end = node.lineno - 1, node.end_lineno or node.lineno
            code = sum(bool(line) and not line.startswith("#") for line in lines[start:end])
            yield code - docstring_lines(node)


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the docstring that are not blank."""
    text = ast.get_docstring(node)
    return sum(bool(line.strip()) for line in text.splitlines()) if text else 0


def count_fragments(tree: ast.Module) -> int:
    """Docstrings, also those of fields and constants, that cannot be read on their own."""
    return sum(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and str(node.value.value).lstrip().startswith("Of ")
        for node in ast.walk(tree)
    )


def count_lines(source: str) -> int:
    return len(source.splitlines())


def percentile(values: list[int], share: float) -> int:
    return values[int(len(values) * share)]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
