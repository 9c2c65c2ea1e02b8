"""When the supervisor of `tunery serve` starts a process again, and when it gives up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.machine.subprocesses import with_import_path

SUPERVISE = """
import logging, os, sys
from tunery.supervisor import Supervisor
{before}
logging.basicConfig(format="%(message)s")
raise SystemExit(Supervisor({{"part": "part"}}, stop_within_s=30, **{more}).run())
"""
WITHOUT_PYTHON = """
class Installer(logging.Handler):
    def __init__(self, path):
        super().__init__()
        self.path = path
    def emit(self, record):
        if not os.path.exists("python"):
            os.symlink(self.path, "python")
logging.getLogger().addHandler(Installer(sys.executable))
sys.executable = "./python"
"""
"""Python is installed once something is logged."""

PART = """
import os, pathlib, signal, sys, time
log = pathlib.Path("starts")
number = len(log.read_text()) if log.exists() else 0
log.write_text("x" * (number + 1))
exit_codes = {exit_codes}
if number < len(exit_codes):
    exit_code = exit_codes[number]
    if exit_code < 0:
        os.kill(os.getpid(), -exit_code)
    sys.exit(exit_code)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


def supervise(
    place: Path, exit_codes: list[int], *, before: str = "", **more: float
) -> tuple[int, int]:
    """Supervise a process that ends with these exit codes, and then ends the supervisor.

    Returns:
        The exit code of the supervisor, and how often it has started the process.
    """
    (place / "part.py").write_text(PART.format(exit_codes=exit_codes))
    supervisor = subprocess.run(
        [sys.executable, "-c", SUPERVISE.format(before=before, more=more)],
        env=with_import_path({**os.environ, "PYTHONPATH": str(place)}),
        cwd=place,
        timeout=60,
        check=False,
    )
    return supervisor.returncode, len((place / "starts").read_text())


@pytest.mark.parametrize(
    ("exit_codes", "starts", "ends_with"),
    [
        pytest.param([2], 1, 2, id="cannot run"),
        pytest.param([1], 2, 0, id="crashed"),
        pytest.param([1, 2], 3, 0, id="cannot run for the moment"),
        pytest.param([-40], 2, 0, id="killed by a signal without a name"),
    ],
)
def test_only_a_first_start_that_cannot_succeed_ends_the_service(
    exit_codes: list[int], starts: int, ends_with: int, tmp_path: Path
) -> None:
    assert supervise(tmp_path, exit_codes) == (ends_with, starts)


def test_a_process_that_has_run_does_not_end_the_service(tmp_path: Path) -> None:
    assert supervise(tmp_path, [2], steady_after_s=0) == (0, 2)


def test_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    assert supervise(tmp_path, [], before=WITHOUT_PYTHON) == (0, 1)
