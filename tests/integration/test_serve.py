"""`tunery serve` as an operator runs it: from the wheel, beside packages of the same names."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

from tests.builders import bearer, write_catalogue
from tests.waiting import wait_until
from tests.wheel import install_wheel
from tunery import service_root
from tunery.logged_process import LoggedProcess

START_S = 60
STOP_S = 30
SETTINGS = {
    "TUNERY_INSTALL_DEFAULT_MODEL": "false",
    "TUNERY_WARM_S": "0",  # no job is trained, so no torch need be loaded
    "TUNERY_SAMPLING": "off",
}


class Served:
    """A `tunery serve` that runs in the block."""

    def __init__(
        self, place: Path, port: int, *, launcher: Sequence[str | Path] = (), **settings: str
    ) -> None:
        inherited = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
        self.process = LoggedProcess(
            [*launcher, install_wheel() / "tunery", "serve", "--port", str(port)],
            log=place / "serve.log",
            cwd=place,
            environment=inherited | SETTINGS | settings,
        )

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_running:
            for process in self.parts().values():
                process.kill()
            self.process.kill()

    @property
    def log(self) -> str:
        return self.process.log()

    def parts(self) -> dict[str, psutil.Process]:
        """The processes that it supervises, by their modules."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # a zombie's, too, has no command any more
                found[child.cmdline()[-1]] = child
        return found

    def readiness(self) -> dict[str, Any] | None:
        ports = re.findall(r"running on (http://\S+)", self.log)
        try:
            return httpx.get(f"{ports[-1]}/readyz").json() if ports else None
        except httpx.TransportError:
            return None

    def await_ready(self, *, starts: int = 1) -> None:
        """Wait until the API answers and a worker looks for jobs, for so many times."""
        wait_until(
            lambda: self.log.count("worker ready") == starts and self.readiness(),
            within_s=START_S,
        )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory whose own `app` and `worker` must not be taken for the service's."""
    write_catalogue(tmp_path / "data")
    for name in ("app", "worker", "migrations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')")
    return tmp_path


def test_what_dies_is_started_again_and_ctrl_c_stops_everything(place: Path) -> None:
    with Served(place, port=0, TUNERY_SAMPLING="idle") as served:
        served.await_ready()
        before = served.parts()
        assert before.keys() == {"app", "worker", "worker.sampling"}

        for process in before.values():
            process.kill()
        served.await_ready(starts=2)
        after = served.parts()
        assert {one.pid for one in before.values()}.isdisjoint(one.pid for one in after.values())
        assert "worker ended with SIGKILL; it is started again in 1 s" in served.log

        assert served.process.stop(signal.SIGINT, within_s=STOP_S) == 0, served.log
        assert not any(process.is_running() for process in after.values())
        assert "worker stopped" in served.log
        assert "Traceback" not in served.log


def test_a_port_that_is_taken_ends_it_with_one_line_that_says_so(place: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Served(place, port=taken.getsockname()[1]) as served,
    ):
        assert served.process.wait(within_s=START_S) == 2
        assert "Cannot listen on 127.0.0.1" in served.log
        assert "Traceback" not in served.log


def test_ctrl_c_during_the_first_start_ends_the_installation_of_the_base_model(
    place: Path,
) -> None:
    def find_installers() -> list[psutil.Process]:
        # A process that ends while it is looked at has no command line any more.
        return [
            child
            for child in psutil.Process(served.process.pid).children(recursive=True)
            if {"worker.commands", "download"} & set(child.as_dict(["cmdline"])["cmdline"] or ())
        ]

    # An index that takes connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as index:
        silent = {
            "TUNERY_INSTALL_DEFAULT_MODEL": "true",
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "PIP_CONFIG_FILE": os.devnull,
        }
        with Served(place, port=0, **silent) as served:
            installers = wait_until(
                lambda: (found := find_installers())[1:] and found, within_s=START_S
            )

            assert served.process.stop(signal.SIGINT, within_s=STOP_S) == 0, served.log
            _, alive = psutil.wait_procs(installers, timeout=STOP_S)

    assert not alive


def test_a_killed_supervisor_takes_its_processes_along(place: Path) -> None:
    with Served(place, port=0) as served:
        served.await_ready()
        parts = served.parts().values()

        served.process.stop(signal.SIGKILL)
        _, alive = psutil.wait_procs(parts, timeout=STOP_S)

        assert not alive


POWERLESS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from worker.launch.sandbox.privileges import give_up_privileges
give_up_privileges(None)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Runs a program as the same user, but without what lets root read all processes."""


def test_no_process_shows_its_environment_to_others_of_its_user(place: Path) -> None:
    powerless = [sys.executable, "-P", "-c", POWERLESS, service_root()]

    def may_read(pid: int) -> bool:
        program = [*powerless, "cat", f"/proc/{pid}/environ"]
        return subprocess.run(program, capture_output=True, check=False).returncode == 0

    other = LoggedProcess(
        [*powerless, "sleep", "600"], log=place / "log", cwd=place, environment=os.environ
    )
    other.start()
    wait_until(lambda: may_read(other.pid), within_s=START_S)
    other.kill()

    with Served(place, port=0, launcher=powerless) as served:
        served.await_ready()
        processes = [served.process.pid, *(one.pid for one in served.parts().values())]

        assert len(processes) == 3
        assert not any(may_read(pid) for pid in processes)


EVERYWHERE = {"TUNERY_HOST": "0.0.0.0"}  # noqa: S104 - that is what is tested


def test_others_are_not_let_in_before_there_is_a_key(place: Path) -> None:
    with Served(place, port=0, **EVERYWHERE) as refused:
        assert refused.process.wait(within_s=START_S) == 2
        (line,) = [line for line in refused.log.splitlines() if "TUNERY_HOST" in line]
        assert "tunery keys create" in line
        assert "Traceback" not in refused.log

    key_file = {"TUNERY_BOOTSTRAP_KEY_FILE": str(place / "admin-key")}
    with Served(place, port=0, **EVERYWHERE, **key_file) as served:
        ports = wait_until(
            lambda: re.findall(r"running on http://\S+:(\d+)", served.log), within_s=START_S
        )
        key = (place / "admin-key").read_text().strip()
        models = f"http://127.0.0.1:{ports[-1]}/v1/models"

        assert httpx.get(models).status_code == 401
        assert httpx.get(models, headers=bearer(key)).status_code == 200
        assert served.process.stop(signal.SIGINT, within_s=STOP_S) == 0, served.log
