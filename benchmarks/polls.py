"""How long status polls take while a job trains, and what they cost the training.

Each round has three windows: nobody asks; a server that does nothing is asked; the API is asked.
The second one is what the generator of requests and the network cost by themselves.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.core.base_models import DEFAULT_MODEL_ID
from benchmarks.real_service import serving_default_model
from benchmarks.support.fixed_answers import Server, fixed_answers
from benchmarks.support.samples import build_chat_file
from benchmarks.uploads import ROOT, cpu_s

WARM_STEPS = 5
"""Steps before anything is measured: the first ones take longer."""

LOOK_S = 0.1
STOP_S = 60.0
JOBS = "/fine_tuning/jobs"


ALONE, CONTROL, POLLED = "alone", "control", "polled"


@dataclass(frozen=True)
class Window:
    """A stretch of the training."""

    first_step: int
    last_step: int
    cpu_s: float
    """Processor time of the process that was asked."""
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
    client: httpx.Client,
    job_id: str,
    *,
    seconds: float,
    server: Server | None = None,
    rate: float = 0.0,
) -> Window:
    """Let it train for so long, and poll a server meanwhile, if there is one.

    Args:
        rate: polls a second.
    """
    first = trained_steps(client, job_id)
    if server is None:
        threading.Event().wait(seconds)
        return Window(first, trained_steps(client, job_id), 0.0, {})
    before_s = cpu_s(server.pid)
    load = poll(server.url, job_id, rate=rate, seconds=seconds, is_cheap=True)
    used_s = cpu_s(server.pid) - before_s
    return Window(first, trained_steps(client, job_id), used_s, load)


def steps_per_s(client: httpx.Client, job_id: str, window: Window) -> float:
    """By the training's own clock, so that no step is counted in part."""
    span = {"step_from": max(1, window.first_step), "step_to": window.last_step}
    answer = client.get(f"{JOBS}/{job_id}/metrics", params=span).raise_for_status()
    rows = answer.json()["data"]
    assert len(rows) > 1, "Nothing was trained meanwhile: take more seconds."
    return (len(rows) - 1) / (rows[-1]["elapsed_s"] - rows[0]["elapsed_s"])


def poll(
    url: str, job_id: str, *, rate: float, seconds: float, key: str = "", is_cheap: bool = False
) -> dict[str, Any]:
    """Poll a job, and now and then its events and the list of jobs. Returns what load.py found.

    Args:
        is_cheap: send two requests at a time, and wake up for no answer.
    """
    job = f"/v1{JOBS}/{job_id}"
    paths = [*[job] * 8, f"{job}/events", f"/v1{JOBS}"]
    options = ["--rate", str(rate), "--seconds", str(seconds), "--key", key]
    options += ["--lazy", "--burst", "2"] if is_cheap else []
    command = [sys.executable, "-m", "benchmarks.load", url, *paths, *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measure(*, model: Path, rate: float, seconds: float, rounds: int) -> None:
    """Print latencies, errors, and steps a second alone, beside a control, and with polls."""
    with serving_default_model(model) as (service, client), fixed_answers() as control:
        job_id = start_job(client)
        while trained_steps(client, job_id) < WARM_STEPS:
            time.sleep(LOOK_S)
        api = Server(service.url, service.processes["api"].pid)
        servers = {ALONE: None, CONTROL: control, POLLED: api}
        windows = [
            {
                kind: watch(client, job_id, seconds=seconds, server=server, rate=rate)
                for kind, server in servers.items()
            }
            for _ in range(rounds)
        ]
        speeds = [
            {kind: steps_per_s(client, job_id, window) for kind, window in each.items()}
            for each in windows
        ]
        client.post(f"{JOBS}/{job_id}/cancel").raise_for_status()
        began = time.monotonic()
        service.processes["worker-1"].stop(within_s=STOP_S)
        print(f"worker ended within {time.monotonic() - began:.0f} s", file=sys.stderr)
    report(rate, windows, speeds)


def report(rate: float, windows: list[dict[str, Window]], speeds: list[dict[str, float]]) -> None:
    print(f"{rate:g} polls a second while a job trains, {len(windows)} rounds in turn")
    for kind in (CONTROL, POLLED):
        for each in windows:
            print(f"  {kind}: {describe(each[kind])}")
    for each in speeds:
        shown = ", ".join(f"{kind} {speed:.3f}" for kind, speed in each.items())
        print(f"  steps/s: {shown}")
    for kind, what in ((CONTROL, "a server that does nothing"), (POLLED, "the API")):
        slowed = [100 * (1 - each[kind] / each[ALONE]) for each in speeds]
        print(
            f"  polls of {what} slow training by {statistics.median(slowed):.1f} % in the median; "
            f"rounds {[round(one, 1) for one in slowed]}"
        )


def describe(window: Window) -> str:
    load = window.load
    server_us, own_us = (
        1e6 * used_s / max(1, load["requests"]) for used_s in (window.cpu_s, load["own_cpu_s"])
    )
    return (
        f"{load['requests']} requests, {load['unchanged']} unchanged, {load['errors']} errors "
        f"{load['first_errors']}: p50 {load['p50_ms']:.1f} ms, p99 {load['p99_ms']:.1f} ms, "
        f"max {load['max_ms']:.1f} ms; for each, the server computes {server_us:.0f} us and who "
        f"asks {own_us:.0f} us"
    )
