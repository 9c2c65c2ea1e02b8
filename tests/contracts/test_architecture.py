"""The layout is a contract: who imports whom, how long a module may be, and what none is called."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MODULES = [path for name in ("app", "worker") for path in sorted((PROJECT / name).rglob("*.py"))]
MAX_LINES = 300
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
