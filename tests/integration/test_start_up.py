"""What is wrong at a start is one line that says what, where and what to do, and exit code 2.

All processes start at once, as most of their time goes into imports.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tunery import service_root
from tunery.logged_process import LoggedProcess

LIMIT_S = 120
SWORDFISH = "swordfish-7"
SPARE = {"TUNERY_INSTALL_DEFAULT_MODEL": "false", "TUNERY_WARM_S": "0", "TUNERY_PORT": "0"}


@dataclass(frozen=True)
class Problem:
    """A way to set the service up wrongly, and what its line must have."""

    says: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Content by name, in the working directory."""


OF_SETTINGS = {
    "a bad setting": Problem(
        ("TUNERY_LEASE_S: Input should be a valid number", "docs/settings.md"),
        {"TUNERY_LEASE_S": "soon"},
    ),
    "a bad setting in the file": Problem(
        ("TUNERY_LEASE_S in .env: Input should be", "docs/settings.md"),
        files={".env": b"OTHER=1\nTUNERY_LEASE_S=soon\n"},
    ),
    "a misspelt setting": Problem(
        ("TUNERY_LEASES is not a setting. Did you mean TUNERY_LEASE_S?",),
        {"TUNERY_LEASES": "30"},
    ),
    "a misspelt setting in the file": Problem(
        ("TUNERY_DATA_DIRECTORY in .env is not a setting. Did you mean TUNERY_DATA_DIR?",),
        files={".env": b"tunery_data_directory=/srv\n"},
    ),
    "a file in another encoding": Problem(
        (".env, line 2: not UTF-8. Save the file in UTF-8.",),
        files={".env": "OTHER=1\nTUNERY_ORGANIZATION=caf\xe9\n".encode("latin-1")},
    ),
}
"""What every process finds out in the same code."""

PROBLEMS = {
    "a URL that is none": Problem(
        ("TUNERY_DATABASE_URL is not a valid URL", "docs/settings.md"),
        {"TUNERY_DATABASE_URL": f"postgresql://tunery:{SWORDFISH}@host:port/tunery"},
    ),
    "no server": Problem(
        ("The database at 127.0.0.1:1/tunery cannot be reached: ", "TUNERY_DATABASE_URL"),
        {"TUNERY_DATABASE_URL": f"postgresql://tunery:{SWORDFISH}@127.0.0.1:1/tunery"},
    ),
    "a damaged database": Problem(
        ("data/tunery.db: file is not a database. ", "restore a backup: see docs/maintenance.md"),
        files={"data/tunery.db": b"no database " * 1000},
    ),
    "no data directory": Problem(
        ("file/data cannot be the data directory: Not a directory. Set TUNERY_DATA_DIR to",),
        {"TUNERY_DATA_DIR": "file/data"},
        {"file": b""},
    ),
    "a catalogue that is none": Problem(
        ("data/base_models.toml is not TOML: ",), files={"data/base_models.toml": b"["}
    ),
}

STARTS = {"api": ("app",), "worker": ("worker",)}
"""Modules by the name with which their line begins."""

CASES = {
    **{("api", title): problem for title, problem in OF_SETTINGS.items()},
    ("worker", "a misspelt setting"): OF_SETTINGS["a misspelt setting"],
    **{(name, title): PROBLEMS[title] for name in STARTS for title in PROBLEMS},
}


def start(module: tuple[str, ...], place: Path, problem: Problem) -> LoggedProcess:
    for name, content in problem.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    process = LoggedProcess(
        [sys.executable, "-P", "-m", *module],
        log=place / "output.log",
        cwd=place,
        environment=os.environ | {"PYTHONPATH": str(service_root())} | SPARE | problem.settings,
    )
    process.start()
    return process


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str]]:
    """Exit code and output of each process, by its name and the problem."""
    started = {
        (name, title): start(STARTS[name], tmp_path_factory.mktemp("start"), problem)
        for (name, title), problem in CASES.items()
    }
    return {
        key: (process.wait(within_s=LIMIT_S), process.log()) for key, process in started.items()
    }


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_a_process_that_cannot_start_says_why_in_one_line(
    name: str, problem: str, ended: dict[tuple[str, str], tuple[int, str]]
) -> None:
    code, said = ended[name, problem]

    assert code == 2, said
    assert said.startswith(f"{name}: "), said
    assert said.count("\n") == 1, said
    assert all(words in said for words in CASES[name, problem].says), said
    assert SWORDFISH not in said


def test_the_service_ends_with_the_line_of_the_process_that_cannot_start(tmp_path: Path) -> None:
    problem = PROBLEMS["no server"]
    process = start(("tunery", "serve"), tmp_path, problem)

    assert process.wait(within_s=LIMIT_S) == 2
    said = process.log()
    assert problem.says[0] in said
    assert "Traceback" not in said
    assert SWORDFISH not in said
