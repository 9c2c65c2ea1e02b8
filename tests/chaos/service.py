"""One API, several workers, and what it takes to hurt them and to bring them back."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from tests.children import find_children
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_S = 60


@dataclass
class Service:
    """Processes of one service; each that has died is started again by `tend`.

    Args:
        data_dir: with the catalogue and the base model.
        workers: how many worker processes.
        settings: by their names, without the prefix.
    """

    data_dir: Path
    workers: int
    settings: dict[str, str]
    worker_module: str = "tests.chaos.worker"
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _frozen: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        with ExitStack() as unless_ready:
            unless_ready.push(self)
            self.tend()
            log = self.data_dir / "app.log"
            ready = wait_until(
                lambda: log.exists() and re.search(r"running on http://\S+:(\d+)", log.read_text()),
                within_s=START_S,
            )
            assert isinstance(ready, re.Match)
            self.settings["port"] = ready[1]  # the same one for every API to come
            unless_ready.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['port']}/v1"

    @property
    def worker_names(self) -> list[str]:
        return [f"worker-{number}" for number in range(self.workers)]

    def tend(self) -> None:
        """Start whatever does not run."""
        for name in ["app", *self.worker_names]:
            process = self._processes.get(name)
            if process is None or process.poll() is not None:
                self._processes[name] = self._start(name)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def is_running(self, name: str) -> bool:
        return self._processes[name].poll() is None

    def signal(self, name: str, number: signal.Signals) -> None:
        if self.is_running(name):
            self._processes[name].send_signal(number)
        if number is signal.SIGKILL:  # so that `tend` sees that it is gone
            self._processes[name].wait()

    def terminate(self, name: str, *, within_s: float) -> float:
        """Ask a worker to end. Returns how many seconds it took.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        began = time.monotonic()
        self._processes[name].terminate()
        code = self._processes[name].wait(within_s)
        # 0, or by the signal itself while it was still starting.
        assert code in {0, -signal.SIGTERM}, f"{name} ended with {code}"
        return time.monotonic() - began

    def children(self) -> dict[str, int]:
        """Process id of every training child, by the id of its job."""
        return find_children(self.data_dir)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def _start(self, name: str) -> "subprocess.Popen[bytes]":
        settings = {"data_dir": str(self.data_dir), "install_default_model": "false", "port": "0"}
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("TUNERY_T")},
            **{f"TUNERY_{key.upper()}": one for key, one in (settings | self.settings).items()},
            "PYTHONPATH": str(ROOT),
        }
        module = "app" if name == "app" else self.worker_module
        with (self.data_dir / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module], cwd=self.data_dir, env=environment, stderr=log
            )
