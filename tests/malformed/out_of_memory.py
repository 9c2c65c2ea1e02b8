"""Jobs that run out of memory, one after the other, while another client uses the API."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.builders import build_chat_file
from tests.malformed.extreme_requests import CONTEXT_LENGTH, MODEL
from tests.malformed.probe import Probe, probing
from tests.tiny import write_tiny_model
from tests.waiting import wait_until
from tunery.local_service import LocalService

WIDE_MODEL = "wide"
"""A base model with small weights, whose activations take gigabytes for a long row."""

_WIDTH = 16_384
_JOBS = 2
_JOB_S = 120.0


@dataclass(frozen=True, slots=True)
class Shortage:
    before: Probe
    """What the other client noticed while jobs trained that fit."""
    during: Probe
    """What it noticed while jobs ran out of memory."""
    codes: list[str]
    """Code of each job that ran out of memory, or its status."""
    next_status: str
    """Status in which the next job ended, which fits."""

    def problems(self, *, max_p99_s: float) -> list[str]:
        """What is wrong.

        Args:
            max_p99_s: 99th percentile of the API's answers that is accepted in any case.
        """
        found = [f"a job ended as {code}" for code in self.codes if code != "out_of_memory"]
        if self.next_status != "succeeded":
            found.append(f"the next job ended as {self.next_status}")
        if self.during.p99_s > max(2 * self.before.p99_s, max_p99_s):
            found.append(f"the API's p99 rose to {1000 * self.during.p99_s:.0f} ms")
        return found


def write_wide_model(directory: Path) -> None:
    write_tiny_model(directory, intermediate_size=_WIDTH)


def run_out_of_memory(service: LocalService) -> Shortage:
    """Train jobs that fit, then jobs that do not, then one that fits."""
    long_row = json.dumps({"text": "x" * CONTEXT_LENGTH}).encode() + b"\n"
    with httpx.Client(base_url=service.base_url, timeout=60) as http:
        small = {"model": MODEL, "training_file": _upload(http, build_chat_file(20))}
        large = {"model": WIDE_MODEL, "training_file": _upload(http, long_row)}
        with probing(service.url) as before:
            for _ in range(_JOBS):
                _run(http, small)
        with probing(service.url) as during:
            codes = [_run(http, large) for _ in range(_JOBS)]
            next_status = _run(http, small)
    service.check()
    return Shortage(before, during, codes, next_status)


def _upload(http: httpx.Client, content: bytes) -> str:
    form = {"file": ("train.jsonl", content)}
    answer = http.post("/files", files=form, data={"purpose": "fine-tune"})
    return answer.raise_for_status().json()["id"]


def _run(http: httpx.Client, request: dict[str, Any]) -> str:
    """Run a job. Returns the code of its error, or its status."""
    hyperparameters = {"max_steps": 5, "context_length": CONTEXT_LENGTH}
    body = request | {"hyperparameters": hyperparameters}
    job_id = http.post("/fine_tuning/jobs", json=body).raise_for_status().json()["id"]

    def look() -> dict[str, Any] | None:
        job = http.get(f"/fine_tuning/jobs/{job_id}").raise_for_status().json()
        return job if job["finished_at"] else None

    job = wait_until(look, within_s=_JOB_S)
    return (job["error"] or {}).get("code", job["status"])
