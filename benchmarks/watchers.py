"""What many streams of one job read from the database, and what they cost its training."""

import json
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.polls import (
    JOBS,
    LOOK_S,
    STOP_S,
    WARM_STEPS,
    Window,
    start_job,
    steps_per_s,
    trained_steps,
)
from benchmarks.real_service import serving_default_model
from benchmarks.uploads import ROOT, cpu_s
from tunery.local_service import LocalService

_READS = re.compile(r"^tunery_stream_reads_total (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Watched:
    """A stretch of the training with readers."""

    window: Window
    reads: int
    """How often the database was read for all streams."""


class Bench:
    """A service with a job that trains."""

    def __init__(self, service: LocalService, client: httpx.Client) -> None:
        self._service = service
        self._client = client
        self._metrics = service.processes["api"].wait_for(r"metrics on (\S+)")[1]
        self.job_id = start_job(client)
        while trained_steps(client, self.job_id) < WARM_STEPS:
            time.sleep(LOOK_S)

    def train_alone(self, seconds: float) -> Window:
        return self._measure(lambda: threading.Event().wait(seconds))

    def train_watched(self, readers: int, seconds: float) -> Watched:
        before = self._reads()
        window = self._measure(lambda: self._follow(readers, seconds))
        return Watched(window, self._reads() - before)

    def steps_per_s(self, window: Window) -> float:
        return steps_per_s(self._client, self.job_id, window)

    def _measure(self, act: Any) -> Window:
        pid = self._service.processes["api"].pid
        first, computed_s = trained_steps(self._client, self.job_id), cpu_s(pid)
        found = act()
        used_s = cpu_s(pid) - computed_s
        last = trained_steps(self._client, self.job_id)
        return Window(first, last, used_s, found if isinstance(found, dict) else {})

    def _follow(self, readers: int, seconds: float) -> dict[str, Any]:
        options = ["--readers", str(readers), "--seconds", str(seconds)]
        command = [sys.executable, "-m", "benchmarks.readers", self._service.url, self.job_id]
        done = subprocess.run([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    def _reads(self) -> int:
        found = _READS.search(httpx.get(self._metrics).text)
        assert found is not None
        return int(float(found[1]))


def measure(*, model: Path, readers: int, seconds: float, rounds: int) -> None:
    """Print reads of the database, and steps a second with and without readers, in turn."""
    with serving_default_model(model, metrics_port="0") as (service, client):
        bench = Bench(service, client)
        windows: list[tuple[Window, Watched]] = []
        for _ in range(rounds):
            alone = bench.train_alone(seconds)
            windows.append((alone, bench.train_watched(readers, seconds)))
        speeds = [
            (bench.steps_per_s(alone), bench.steps_per_s(watched.window))
            for alone, watched in windows
        ]
        client.post(f"{JOBS}/{bench.job_id}/cancel").raise_for_status()
        service.processes["worker-1"].stop(within_s=STOP_S)
    report(readers, windows, speeds)


def report(
    readers: int, windows: list[tuple[Window, Watched]], speeds: list[tuple[float, float]]
) -> None:
    print(f"{readers} readers of one job that trains, {len(windows)} rounds in turn")
    for alone, watched in windows:
        load = watched.window.load
        more_s = watched.window.cpu_s - alone.cpu_s
        print(
            f"  {load['served']} served; {load['most_jobs'] - 1} changes, {watched.reads} reads of "
            f"the database; the API computes {more_s:.2f} s more, the readers "
            f"{load['own_cpu_s']:.2f} s, and {load['bytes'] / 2**20:.1f} MiB are sent"
        )
    print(
        f"  steps/s without and with readers: {[[round(one, 2) for one in two] for two in speeds]}"
    )
    slowed = [100 * (1 - watched / alone) for alone, watched in speeds]
    print(f"  training is slowed by {statistics.median(slowed):.1f} % in the median")
