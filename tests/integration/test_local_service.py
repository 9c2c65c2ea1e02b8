"""A service that a program starts for itself, and the processes it consists of."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.wheel import install_wheel
from tunery.local_service import LocalService
from tunery.logged_process import LoggedProcess, ServiceError
from worker.launch.locks import start_ticks

END_S = 30
"""Longest time an end may take to be seen; generous, as machines that test are busy."""

A_USERS_PROGRAM = """
import urllib.request
from pathlib import Path
from tunery.local_service import LocalService

with LocalService(Path("data"), workers=0) as service:
    print(urllib.request.urlopen(f"{service.url}/healthz").status)
"""


def test_a_program_starts_a_service_with_nothing_but_the_wheel(tmp_path: Path) -> None:
    """Beside an `app` that must not be taken for the service's."""
    (tmp_path / "app.py").write_text("raise SystemExit('not this one')")

    done = subprocess.run(
        [install_wheel() / "python", "-c", A_USERS_PROGRAM],
        cwd=tmp_path,
        env={name: os.environ[name] for name in os.environ if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.returncode) == ("200\n", 0), done.stderr


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    service = LocalService(tmp_path, {"max_upload_bytes": "many"}, workers=0)

    with pytest.raises(ServiceError, match=r"(?s)api ended with exit code 2.*MAX_UPLOAD_BYTES"):
        service.__enter__()

    assert not service.processes["api"].is_running


def python(tmp_path: Path, program: str) -> LoggedProcess:
    return LoggedProcess(
        [sys.executable, "-uc", program],
        log=tmp_path / "program.log",
        cwd=tmp_path,
        environment=os.environ,
    )


def test_what_an_earlier_start_has_logged_does_not_make_a_process_ready(tmp_path: Path) -> None:
    program = python(tmp_path, "import os; print('ready' if not os.path.exists('x') else 'no')")
    program.start()
    program.wait_for("ready")
    program.wait()
    (tmp_path / "x").touch()

    program.start()

    with pytest.raises(ServiceError, match=r"(?s)program ended with exit code 0.*ready\n.*no"):
        program.wait_for("ready")


def test_a_process_that_does_not_stop_is_killed_and_told_of(tmp_path: Path) -> None:
    ignoring = "import signal; signal.signal(15, signal.SIG_IGN); print('ready'); signal.pause()"
    program = python(tmp_path, ignoring)
    program.start()
    program.wait_for("ready")

    with pytest.raises(ServiceError, match="did not end within 0 s and was killed"):
        program.stop(within_s=0.1)

    assert not program.is_running


STARTER = """
import os, signal, sys
from pathlib import Path
from tunery.logged_process import LoggedProcess

program = LoggedProcess(
    [sys.executable, "-c", "import signal; signal.pause()"],
    log=Path("program.log"), cwd=Path(), environment=os.environ,
)
program.start()
print(program.pid, flush=True)
signal.pause()
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())

        starter.send_signal(signal.SIGKILL)

        wait_until(lambda: start_ticks(pid) is None, within_s=END_S)
