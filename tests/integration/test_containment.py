"""A hostile training process tries to get out of its sandbox, in the worker that it really has."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.core.job.child.containment import CORE, LayerKind
from worker.launch.sandbox.sandbox import _GPU

PROJECT = Path(__file__).parents[2]
UNPRIVILEGED = 10001
"""The user of the container image."""
USERS = [None, UNPRIVILEGED] if os.geteuid() == 0 else [None]
"""The present one, and if that is root, one without privileges."""

Results = dict[str, Any]


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the attempts once for each launcher, mode and user."""

    @cache
    def attack(kind: str, mode: str, user: int | None) -> Results:
        directory = tmp_path_factory.mktemp("attack")
        arguments = [kind, mode, str(directory), *([] if user is None else [str(user)])]
        worker = subprocess.run(
            [sys.executable, "-m", "tests.escapes.worker", *arguments],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert worker.returncode == 0, worker.stderr
        return json.loads(worker.stdout)

    return attack


def escaped(results: Results) -> set[str]:
    return {name for name, reason in results["attempts"].items() if reason is None}


def out_of_reach(results: Results) -> set[str]:
    """What this machine cannot prevent."""
    found = set[str]()
    if results["user"] == 0 and results["layers"].get(LayerKind.USER) != "":
        found.add("start processes without end")  # no limit of processes holds for root
    if _GPU.exists():
        found.add("take all memory")
    return found


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("mode", ["all", "core"])
@pytest.mark.parametrize("kind", ["cold", "warm"])
def test_a_training_process_cannot_get_out(
    attack: Any, kind: str, mode: str, user: int | None
) -> None:
    results = attack(kind, mode, user)

    assert len(results["attempts"]) > 40
    assert escaped(results) == out_of_reach(results)


@pytest.mark.parametrize("user", USERS)
def test_without_the_sandbox_it_gets_out(attack: Any, user: int | None) -> None:
    """So the attempts are real."""
    results = attack("warm", "off", user)

    assert escaped(results) >= {
        "connect to the API",
        "connect to an abstract socket",
        "make a datagram socket",
        "read the database",
        "write the database",
        "write a blob",
        "read the signing key",
        "write the signing key",
        "write the base model",
        "read another job",
        "signal the worker",
        "limit the worker",
        "leave the session",
        "write the machine's cache",
        "write another project's compiled code",
        "rename the lock's holder",
        "write a terabyte",
        "take all memory",
        "make a link",
        "make a pipe",
        "start a program of its own",
        "leave a process behind",
    }


def test_every_core_layer_holds_here(attack: Any) -> None:
    for user in USERS:
        layers = attack("cold", "all", user)["layers"]
        assert {kind: layers[kind] for kind in CORE} == dict.fromkeys(CORE, "")
