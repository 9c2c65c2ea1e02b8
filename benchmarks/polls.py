"""How long status polls take while a job trains, and what they cost the training."""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.core.base_models import DEFAULT_MODEL_ID
from benchmarks.support.samples import build_chat_file
from benchmarks.uploads import ROOT, cpu_s
from tunery.local_service import LocalService

WARM_STEPS = 5
"""Steps before anything is measured: the first ones take longer."""

LOOK_S = 0.1
STOP_S = 60.0
JOBS = "/fine_tuning/jobs"


@dataclass(frozen=True)
class Window:
    """A stretch of the training."""

    first_step: int
    last_step: int
    cpu_s: float
    load: dict[str, Any]
    """What the generator of requests has found; empty where there was none."""


def start_job(client: httpx.Client) -> str:
    """The id of a job that trains for as long as anybody looks at it."""
    files = {"file": ("train.jsonl", build_chat_file(2000))}
    upload = client.post("/files", data={"purpose": "fine-tune"}, files=files)
    upload.raise_for_status()
    knobs = {"n_epochs": 50, "checkpoint_steps": 10**6}
    body = {
        "model": DEFAULT_MODEL_ID,
        "training_file": upload.json()["id"],
        "seed": 1,
        "hyperparameters": knobs,
    }
    made = client.post(JOBS, json=body)
    made.raise_for_status()
    return made.json()["id"]


def trained_steps(client: httpx.Client, job_id: str) -> int:
    job = client.get(f"{JOBS}/{job_id}").raise_for_status().json()
    assert job["finished_at"] is None, job
    return job["trained_steps"]


def watch(
    service: LocalService, client: httpx.Client, job_id: str, *, rate: float, seconds: float
) -> Window:
    """Let it train for so long, with so many polls a second beside it."""
    api_pid = service.processes["api"].pid
    first, computed_s = trained_steps(client, job_id), cpu_s(api_pid)
    load: dict[str, Any] = {}
    if rate:
        load = poll(service.url, job_id, rate=rate, seconds=seconds)
    else:
        threading.Event().wait(seconds)
    used_s = cpu_s(api_pid) - computed_s
    return Window(first, trained_steps(client, job_id), used_s, load)


def poll(url: str, job_id: str, *, rate: float, seconds: float, key: str = "") -> dict[str, Any]:
    """Poll a job, and now and then its events and the list of jobs. Returns what load.py found."""
    job = f"/v1{JOBS}/{job_id}"
    paths = [*[job] * 8, f"{job}/events", f"/v1{JOBS}"]
    options = ["--rate", str(rate), "--seconds", str(seconds), "--key", key]
    command = [sys.executable, "-m", "benchmarks.load", url, *paths, *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def steps_per_s(client: httpx.Client, job_id: str, window: Window) -> float:
    """By the training's own clock, so that no step is counted in part."""
    span = {"step_from": max(1, window.first_step), "step_to": window.last_step}
    answer = client.get(f"{JOBS}/{job_id}/metrics", params=span).raise_for_status()
    rows = answer.json()["data"]
    assert len(rows) > 1, "Nothing was trained meanwhile: take more seconds."
    return (len(rows) - 1) / (rows[-1]["elapsed_s"] - rows[0]["elapsed_s"])


def measure(*, model: Path, rate: float, seconds: float, rounds: int) -> None:
    """Print latencies, errors, and steps a second with and without polls, in turn."""
    if not model.is_dir():
        sys.exit(f"There is no base model at {model}. Run: make model")
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name) / "data"
        (data_dir / "models").mkdir(parents=True)
        (data_dir / "models" / DEFAULT_MODEL_ID).symlink_to(model.resolve())
        settings = {
            "min_free_bytes": "0",
            "save_interval_s": "3600",
            "install_default_model": "false",
        }
        with (
            LocalService(data_dir, settings) as service,
            httpx.Client(base_url=service.base_url, timeout=30) as client,
        ):
            job_id = start_job(client)
            while trained_steps(client, job_id) < WARM_STEPS:
                time.sleep(LOOK_S)
            windows: list[tuple[Window, Window]] = []
            for _ in range(rounds):
                alone = watch(service, client, job_id, rate=0, seconds=seconds)
                polled = watch(service, client, job_id, rate=rate, seconds=seconds)
                windows.append((alone, polled))
            speeds = [
                tuple(steps_per_s(client, job_id, window) for window in pair) for pair in windows
            ]
            client.post(f"{JOBS}/{job_id}/cancel").raise_for_status()
            began = time.monotonic()
            service.processes["worker-1"].stop(within_s=STOP_S)
            print(f"worker ended within {time.monotonic() - began:.0f} s", file=sys.stderr)
    report(rate, windows, speeds)


def report(
    rate: float, windows: list[tuple[Window, Window]], speeds: list[tuple[float, ...]]
) -> None:
    print(f"{rate:g} polls a second while a job trains, {len(windows)} rounds in turn")
    for _, polled in windows:
        load = polled.load
        api_ms, own_ms = (
            1000 * used_s / max(1, load["requests"]) for used_s in (polled.cpu_s, load["own_cpu_s"])
        )
        print(
            f"  {load['requests']} requests, {load['errors']} errors {load['first_errors']}: "
            f"p50 {load['p50_ms']:.1f} ms, p99 {load['p99_ms']:.1f} ms, max {load['max_ms']:.1f} "
            f"ms; for each, the API computes {api_ms:.2f} ms and who asks {own_ms:.2f} ms"
        )
    alone, polled = (statistics.fmean(each) for each in zip(*speeds, strict=True))
    print(f"  steps/s without and with polls: {[[round(one, 2) for one in two] for two in speeds]}")
    print(f"  training is slowed by {100 * (1 - polled / alone):.1f} %")
