"""The service as its users meet it: two processes and an address."""

import os
import re
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import openai
from openai.types.fine_tuning import FineTuningJob

from tests.children import find_children
from tests.waiting import wait_until
from tests.wheel import install_wheel

START_S = 60
"""Longest time a process may take to be ready; generous, as machines that test are busy."""

STOP_S = 20
JOB_S = 180
ENDED = ("succeeded", "failed", "cancelled")
_COMMANDS = {"app": "api", "worker": "worker"}


class ServiceProcesses:
    """`tunery api` and `tunery worker` on one data directory, on a port of their own.

    They run from the wheel, installed in an environment of its own: not from the checkout.

    Args:
        settings: more settings, by their names without the prefix, as `lease_s="5"`.
    """

    def __init__(self, data_dir: Path, **settings: str) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        named = {
            "data_dir": str(data_dir),
            "port": "0",
            "poll_interval_s": "0.05",
            "training_threads": "1",  # others test beside us, one process a core
            "training_dtype": "float32",  # on every machine, so that figures can be compared
            "install_default_model": "false",
        }
        self._environment = {
            **{name: value for name, value in os.environ.items() if "TUNERY" not in name},
            **{f"TUNERY_{name.upper()}": value for name, value in (named | settings).items()},
        }
        self._api: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self.base_url = ""
        """With the `/v1` that every client is given."""

    def __enter__(self) -> Self:
        with ExitStack() as unless_ready:
            unless_ready.push(self)
            self._start_api()
            self.start_worker()
            unless_ready.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._worker, self._api):
            if process is not None:
                self._end(process, signal.SIGTERM)

    def client(self, *, strict: bool = True, **options: Any) -> openai.OpenAI:
        """The stock client, which is told nothing but where the service is."""
        return openai.OpenAI(
            base_url=self.base_url,
            api_key="unused",
            max_retries=0,
            _strict_response_validation=strict,
            **options,
        )

    def wait_for_end(self, client: openai.OpenAI, job_id: str) -> FineTuningJob:
        """Wait until the job has ended, however it does."""

        def look() -> FineTuningJob | None:
            job = client.fine_tuning.jobs.retrieve(job_id)
            return job if job.status in ENDED else None

        return wait_until(look, within_s=JOB_S)

    def restart_api(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send the API a signal, wait for its end and start it again, at another address."""
        assert self._api is not None
        self._end(self._api, how)
        self._start_api()

    def _start_api(self) -> None:
        def find_addresses() -> list[str]:
            return re.findall(r"running on (http://\S+)", self.log("app"))

        starts_before = len(find_addresses())
        self._api = self._start("app")
        addresses = wait_until(
            lambda: (found := find_addresses())[starts_before:] and found, within_s=START_S
        )
        self.base_url = f"{addresses[-1]}/v1"

    def start_worker(self) -> None:
        """Start a worker and wait until it looks for jobs."""
        ready_before = self.log("worker").count("worker ready")
        self._worker = self._start("worker")
        wait_until(
            lambda: self.log("worker").count("worker ready") > ready_before, within_s=START_S
        )

    def stop_worker(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the worker a signal and wait for its end. Returns its exit code."""
        assert self._worker is not None
        worker, self._worker = self._worker, None
        return self._end(worker, how)

    @property
    def api_pid(self) -> int:
        assert self._api is not None
        return self._api.pid

    def find_child(self, job_id: str) -> int | None:
        """Process id of the child that trains this job; None when there is none."""
        return find_children(self.data_dir).get(job_id)

    def log(self, process: str) -> str:
        """What `app` or `worker` has written to standard error."""
        path = self._log_file(process)
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def _start(self, process: str) -> "subprocess.Popen[bytes]":
        with self._log_file(process).open("ab") as log:
            return subprocess.Popen(
                [install_wheel() / "tunery", _COMMANDS[process]],
                cwd=self.data_dir,
                env=self._environment,
                stderr=log,
            )

    def _log_file(self, process: str) -> Path:
        return self.data_dir / f"{process}.log"

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]", how: signal.Signals) -> int:
        process.send_signal(how)
        try:
            return process.wait(STOP_S)
        finally:
            process.kill()
