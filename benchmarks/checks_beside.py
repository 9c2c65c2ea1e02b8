"""What the check of a job's data costs another job that trains, and how soon it begins."""

import statistics
import time
from pathlib import Path

import httpx

from app.core.base_models import DEFAULT_MODEL_ID
from benchmarks.polls import (
    JOBS,
    LOOK_S,
    WARM_STEPS,
    Window,
    start_job,
    steps_per_s,
    trained_steps,
    watch,
)
from benchmarks.real_service import serving_default_model
from benchmarks.support.samples import build_chat_file

_SELDOM_S = 2.0


def _upload(client: httpx.Client, rows: int) -> str:
    files = {"file": ("train.jsonl", build_chat_file(rows))}
    upload = client.post("/files", data={"purpose": "fine-tune"}, files=files)
    return upload.raise_for_status().json()["id"]


def _check(client: httpx.Client, file_id: str, *, look_s: float = LOOK_S) -> float:
    """Let a job's data be checked. Returns how long that took, in seconds, with the wait for it.

    Args:
        client: of the service.
        file_id: the data.
        look_s: seconds between two looks at the job, which cost a training beside it something.
    """
    body = {"model": DEFAULT_MODEL_ID, "training_file": file_id, "auto_start": False}
    began_s = time.monotonic()
    job = client.post(JOBS, json=body).raise_for_status().json()
    while job["status"] == "validating_files":
        time.sleep(look_s)
        job = client.get(f"{JOBS}/{job['id']}").raise_for_status().json()
    assert job["status"] == "paused", job
    return time.monotonic() - began_s


def measure(*, model: Path, rows: int, rounds: int) -> None:
    """Print how soon an idle worker has checked ten rows, and what checks cost a training."""
    with serving_default_model(model) as (_service, client):
        small = _upload(client, 10)
        print("ten rows on an idle worker, from creation to the end of the check:")
        print("  " + ", ".join(f"{_check(client, small):.2f} s" for _ in range(3)))
        _measure_beside(client, rows=rows, rounds=rounds)


def _measure_beside(client: httpx.Client, *, rows: int, rounds: int) -> None:
    large = _upload(client, rows)
    job_id = start_job(client)
    while trained_steps(client, job_id) < WARM_STEPS:
        time.sleep(LOOK_S)
    windows: list[tuple[Window, Window]] = []
    for _ in range(rounds):
        first = trained_steps(client, job_id)
        seconds = _check(client, large, look_s=_SELDOM_S)
        beside = Window(first, trained_steps(client, job_id), 0.0, {})
        print(f"  a check of {rows:,} rows beside a training took {seconds:.0f} s", flush=True)
        alone = watch(client, job_id, seconds=seconds)
        windows.append((alone, beside))
    speeds = [tuple(steps_per_s(client, job_id, window) for window in pair) for pair in windows]
    client.post(f"{JOBS}/{job_id}/cancel").raise_for_status()
    alone, beside = (statistics.fmean(each) for each in zip(*speeds, strict=True))
    print(f"  steps/s without and with it: {[[round(one, 2) for one in two] for two in speeds]}")
    print(f"  training is slowed by {100 * (1 - beside / alone):.1f} %")
