"""The service as processes of one's own: start the API and a worker, watch them, stop them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

PROJECT = Path(__file__).resolve().parents[1]

START_TIMEOUT_S = 300
"""Generous: a worker that misses its base model installs it first."""

STOP_TIMEOUT_S = 40
"""What a worker may take to bring a running job to rest."""

LOG_TAIL_LINES = 15


class ServiceError(Exception):
    """The service does not run; the message ends with the tail of the log that says why."""


class Service:
    """The API and one worker. A context manager: both are stopped on the way out, however it goes.

    They use the settings of the environment, as `make serve` does, except for the address: the
    API listens on this machine alone, on another port than its usual one if that is taken.
    """

    def __init__(self, log_dir: Path) -> None:
        port = _free_port()
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.data_dir = Path(os.environ.get("TUNERY_DATA_DIR") or PROJECT / "data").resolve()
        self._readiness_url = f"http://127.0.0.1:{port}/readyz"
        self._log_dir = log_dir
        self._environment = os.environ | {
            "TUNERY_DATA_DIR": str(self.data_dir),
            "TUNERY_HOST": "127.0.0.1",
            "TUNERY_PORT": str(port),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._start("app")
            self._wait_until(lambda readiness: readiness is not None)
            self._start("worker")
            self._wait_until(lambda readiness: bool(readiness and readiness["workers"]))
        except BaseException:  # Ctrl-C too: nothing may be left running
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def check(self) -> None:
        """Make sure that both processes are alive.

        Raises:
            ServiceError: one has ended.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise ServiceError(
                    f"The {name} process ended with status {process.returncode}. "
                    f"Its log ends so:\n{self.log_tail(name)}"
                )

    def log_tail(self, name: str) -> str:
        """The last lines that the process called `app` or `worker` has logged."""
        lines = self._log_path(name).read_text("utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])

    def _start(self, name: str) -> None:
        with self._log_path(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", name],
                cwd=PROJECT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop them in good order
            )

    def _wait_until(self, is_ready: Callable[[dict[str, Any] | None], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready(self._readiness()):
            self.check()
            if time.monotonic() > deadline:
                newest = list(self._processes)[-1]
                raise ServiceError(
                    f"The {newest} process was not ready within {START_TIMEOUT_S} s. "
                    f"Its log ends so:\n{self.log_tail(newest)}"
                )
            time.sleep(0.2)

    def _readiness(self) -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(self._readiness_url, timeout=5) as answer:  # noqa: S310
                return json.load(answer)
        except OSError:  # nobody listens yet, or the answer is 503
            return None

    def _stop(self) -> None:
        """The worker first: until it has left its job, the database and the API are of use."""
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with its training child, if it has one
                process.wait()
        self._processes.clear()

    def _log_path(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"


def _free_port(preferred: int = 8000) -> int:
    """`preferred`, or any other TCP port if that one is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ServiceError("This machine has no free TCP port.")
