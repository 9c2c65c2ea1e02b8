"""The layout is a contract: who imports whom, how long a module may be, and what none is called."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MODULES = [path for name in ("app", "worker") for path in sorted((PROJECT / name).rglob("*.py"))]
MAX_LINES = 300
BESIDE = {
    name: sorted((PROJECT / name).rglob("*.py")) for name in ("benchmarks", "examples", "tests")
}
"""The modules that are no part of the service, by their directory."""

DELIBERATE_STARTERS = {"tests/contracts/test_deployment.py"}
"""Modules that test how something else starts the service: the Dockerfile and the units do."""

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers"}
"""They say nothing about what is inside, so everything ends up there."""

every_module = pytest.mark.parametrize(
    "module", [pytest.param(path, id=str(path.relative_to(PROJECT))) for path in MODULES]
)


def test_imports_keep_to_their_contracts() -> None:
    lint = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert lint.returncode == 0, lint.stdout + lint.stderr


@every_module
def test_a_module_is_short_enough_to_read(module: Path) -> None:
    lines = len(module.read_text("utf-8").splitlines())

    assert lines <= MAX_LINES, f"{lines} lines, at most {MAX_LINES}: find the seam."


@every_module
def test_a_module_is_named_for_what_it_holds(module: Path) -> None:
    assert VAGUE_NAMES.isdisjoint({module.stem, *module.relative_to(PROJECT).parts})


@pytest.mark.parametrize(
    ("directory", "strangers"),
    [
        ("benchmarks", {"tests", "examples"}),
        ("examples", {"tests", "benchmarks", "app", "worker"}),
        ("tests", {"examples"}),
    ],
)
def test_what_is_beside_the_service_imports_only_what_is_below_it(
    directory: str, strangers: set[str]
) -> None:
    for module in BESIDE[directory]:
        assert strangers.isdisjoint(imported_packages(module)), module


def imported_packages(module: Path) -> set[str]:
    """The first part of every name that the module imports, also inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_the_service_is_started_in_one_way() -> None:
    """By `tunery.local_service`: no other module calls `Popen` and names a process of it."""
    starters = {
        str(module.relative_to(PROJECT))
        for module in itertools.chain(*BESIDE.values())
        if starts_the_service(ast.parse(module.read_text("utf-8")))
    }

    assert starters == DELIBERATE_STARTERS


def starts_the_service(module: ast.Module) -> bool:
    nodes = list(ast.walk(module))
    calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    programs, processes = {"-m", "tunery"} & texts, {"app", "worker", "api", "serve"} & texts
    return "subprocess.Popen" in calls and bool(programs and processes)
