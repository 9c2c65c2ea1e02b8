"""When the supervisor of `tunery serve` starts a process again, and when it gives up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.machine.subprocesses import with_import_path

SUPERVISE = """
import logging
from tunery.supervisor import Supervisor
logging.basicConfig(format="%(message)s")
raise SystemExit(Supervisor({"part": "part"}, stop_within_s=30).run())
"""
PART = """
import os, pathlib, signal, sys, time
log = pathlib.Path("starts")
number = len(log.read_text()) if log.exists() else 0
log.write_text("x" * (number + 1))
exit_codes = {exit_codes}
if number < len(exit_codes):
    sys.exit(exit_codes[number])
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("exit_codes", "starts", "ends_with"),
    [
        pytest.param([2], 1, 2, id="cannot run"),
        pytest.param([1], 2, 0, id="crashed"),
        pytest.param([1, 2], 3, 0, id="cannot run for the moment"),
    ],
)
def test_only_a_first_start_that_cannot_succeed_ends_the_service(
    exit_codes: list[int], starts: int, ends_with: int, tmp_path: Path
) -> None:
    (tmp_path / "part.py").write_text(PART.format(exit_codes=exit_codes))
    supervisor = subprocess.run(
        [sys.executable, "-c", SUPERVISE],
        env=with_import_path({**os.environ, "PYTHONPATH": str(tmp_path)}),
        cwd=tmp_path,
        timeout=60,
        check=False,
    )

    assert supervisor.returncode == ends_with
    assert len((tmp_path / "starts").read_text()) == starts
