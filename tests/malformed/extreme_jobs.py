"""Send random extreme requests for jobs to the real service, and let jobs run out of memory.

    python -m tests.malformed.extreme_jobs --requests 5000

Each request must be refused with a clear 4xx, or become a job that ends within its limits of time
and memory: it succeeds, or fails for a reason that its user can remove. Prints how the requests
were answered and how the jobs ended. The exit code is 1 if there is any problem.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.support.samples import catalogue_entry
from tests.children import find_children
from tests.malformed.extreme_requests import CONTEXT_LENGTH, MODEL, data_files, requests
from tests.malformed.out_of_memory import (
    WIDE_MODEL,
    Shortage,
    run_out_of_memory,
    write_wide_model,
)
from tests.malformed.small_worker import MEMORY_BYTES
from tests.malformed.wire import dump
from tests.models import install_models
from tests.tiny import ALL_LINEAR, write_tiny_model
from tests.waiting import wait_until
from tunery.local_service import LocalService

JOBS = "/fine_tuning/jobs"
BACKLOG = 30
"""Most jobs that are unfinished at once."""

MAX_DURATION_S = 6
"""Limit of the project whose jobs they are."""

STOP_GRACE_S = 3
OVERHEAD_S = 10
"""How long a job may take in addition to its limit and its grace: to start, and to be published."""

MAX_P99_S = 0.05
"""99th percentile of the API's answers that is accepted while jobs run out of memory."""

LAST_JOB_S = 600.0
"""Longest wait for a job, with all jobs before it."""

USERS_CODES = {
    "adapter_has_no_effect",
    "chat_template_unsupported",
    "loss_not_finite",
    "max_duration_exceeded",
    "no_trainable_tokens",
    "not_enough_memory",
    "out_of_memory",
    "row_too_long",
    "too_few_examples",
}
"""Codes of failed jobs whose cause is in the request. The others are a fault of the service."""


@dataclass(slots=True)
class Findings:
    answers: Counter[int] = field(default_factory=Counter)
    """Number of requests by the status of the answer."""
    ends: Counter[str] = field(default_factory=Counter)
    """Number of jobs by their status, or by the code of their error."""
    slowest: tuple[int, str] = (0, "no job")
    """Seconds of the slowest job, and its request."""
    peak_bytes: int = 0
    """Most memory of its own that a training process was seen with."""
    problems: list[str] = field(default_factory=list)


class MemoryWatch(threading.Thread):
    """Notes the memory of all training processes until it is told to end."""

    def __init__(self, data_dir: Path, findings: Findings) -> None:
        super().__init__(daemon=True)
        self._data_dir = data_dir
        self._findings = findings
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(0.25):
            for pid in find_children(self._data_dir).values():
                with suppress(psutil.Error):  # it has just ended
                    self._look_at(psutil.Process(pid))

    def _look_at(self, child: psutil.Process) -> None:
        for process in (child, *child.children(recursive=True)):  # one in namespaces of its own
            memory: Any = process.memory_info()
            own_bytes = memory.rss - memory.shared
            self._findings.peak_bytes = max(self._findings.peak_bytes, own_bytes)

    def end(self) -> None:
        self._is_over.set()
        self.join()


class Driver:
    """Sends requests, and checks the answers and how the jobs end."""

    def __init__(self, http: httpx.Client, findings: Findings) -> None:
        self._http = http
        self._findings = findings
        self._unfinished: deque[tuple[str, str]] = deque()

    def limit_duration(self) -> None:
        limit = {"max_duration_s": MAX_DURATION_S}
        self._http.post("/organization/projects/proj-default", json=limit).raise_for_status()

    def upload(self) -> dict[str, str]:
        """Upload all data sets. Returns the ids of those that are accepted."""
        ids: dict[str, str] = {}
        for name, content in data_files().items():
            answer = self._http.post(
                "/files", files={"file": (name, content)}, data={"purpose": "fine-tune"}
            )
            self._check_answer(answer, name)
            if answer.status_code == 200:
                ids[name] = answer.json()["id"]
        return ids

    def send(self, request: Mapping[str, Any]) -> None:
        body = dump(request)
        shown = body.decode()[:300]
        headers = {"content-type": "application/json"}
        answer = self._http.post(JOBS, content=body, headers=headers)
        self._findings.answers[answer.status_code] += 1
        self._check_answer(answer, shown)
        if answer.status_code != 200:
            return
        job = answer.json()
        if job["pause_requested_at"]:
            self._check_answer(self._http.post(f"{JOBS}/{job['id']}/resume"), shown)
        self._unfinished.append((job["id"], shown))

    def await_jobs(self, *, leave: int) -> None:
        """Wait for the oldest jobs and delete them, until only `leave` jobs are unfinished."""
        while len(self._unfinished) > leave:
            job_id, shown = self._unfinished.popleft()
            try:
                job = wait_until(lambda: self._find_ended(job_id), within_s=LAST_JOB_S)  # noqa: B023
            except AssertionError:
                self._report("it did not end", shown)
                continue
            self._check_end(job, shown)
            self._check_answer(self._http.delete(f"{JOBS}/{job_id}"), shown)

    def _find_ended(self, job_id: str) -> dict[str, Any] | None:
        job = self._http.get(f"{JOBS}/{job_id}").raise_for_status().json()
        return job if job["finished_at"] else None

    def _check_answer(self, answer: httpx.Response, shown: str) -> None:
        if answer.status_code == 200:
            return
        error = answer.json().get("error", {}) if 400 <= answer.status_code < 500 else {}
        if not (error.get("message") and error.get("code") and "param" in error):
            self._report(f"{answer.status_code} {answer.text[:200]}", shown)

    def _check_end(self, job: dict[str, Any], shown: str) -> None:
        error = job["error"] or {}
        self._findings.ends[error.get("code", job["status"])] += 1
        began_at = job["started_at"] or job["finished_at"]  # its data may be refused before
        took_s = job["finished_at"] - began_at
        self._findings.slowest = max(self._findings.slowest, (took_s, shown))
        if error.get("code", "none") not in USERS_CODES and job["status"] != "succeeded":
            self._report(f"{job['status']}: {error}", shown)
        elif job["attempt"] > 1:
            self._report(f"it needed {job['attempt']} attempts", shown)
        elif took_s > MAX_DURATION_S + STOP_GRACE_S + OVERHEAD_S:
            self._report(f"it took {took_s} s", shown)

    def _report(self, problem: str, shown: str) -> None:
        self._findings.problems.append(f"{problem}, for {shown}")


def small_service(data_dir: Path) -> LocalService:
    """A service with the models `tiny` and `wide`, whose jobs have little memory."""
    entries: list[dict[str, Any]] = []
    for model_id, write in {MODEL: write_tiny_model, WIDE_MODEL: write_wide_model}.items():
        source = data_dir / "sources" / model_id
        write(source)
        entry = catalogue_entry(model_id, source={"kind": "directory", "path": str(source)})
        entries.append(entry | {"context_length": CONTEXT_LENGTH, "target_modules": ALL_LINEAR})
    install_models(data_dir, *entries)
    settings = {
        "min_free_bytes": "0",
        "install_default_model": "false",
        "poll_interval_s": "0.02",
        "stop_grace_s": str(STOP_GRACE_S),
        "concurrency": "2",
        "training_dtype": "float32",  # on every machine, so that as much memory is needed
    }
    return LocalService(data_dir, settings, worker_module="tests.malformed.small_worker")


def send_extremes(service: LocalService, count: int, *, seed: int) -> Findings:
    """Send `count` requests, and wait for the jobs that come of them."""
    findings = Findings()
    watch = MemoryWatch(service.data_dir, findings)
    watch.start()
    with httpx.Client(base_url=service.base_url, timeout=60) as http:
        driver = Driver(http, findings)
        driver.limit_duration()
        for request in requests(count, driver.upload(), seed=seed):
            driver.send(request)
            driver.await_jobs(leave=BACKLOG)
        driver.await_jobs(leave=0)
    watch.end()
    service.check()
    if findings.peak_bytes > MEMORY_BYTES:
        findings.problems.append(f"a training process had {findings.peak_bytes:,} bytes")
    return findings


def report(findings: Findings, shortage: Shortage) -> None:
    for title, counts in {"answers": findings.answers, "ends of jobs": findings.ends}.items():
        print(f"{counts.total():,} {title}")
        for kind, count in counts.most_common():
            print(f"  {kind}: {count:,}")
    print(f"slowest job: {findings.slowest[0]} s, for {findings.slowest[1]}")
    print(f"largest process: {findings.peak_bytes / 2**20:.0f} MiB of {MEMORY_BYTES / 2**20:.0f}")
    before_ms, during_ms = (1000 * each.p99_s for each in (shortage.before, shortage.during))
    print(f"jobs out of memory: {Counter(shortage.codes)}, then {shortage.next_status}")
    print(f"p99 of the API meanwhile: {during_ms:.1f} ms; before: {before_ms:.1f} ms")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000, help="number of requests")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    options = parser.parse_args(arguments)
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, small_service(Path(name)) as service:
        shortage = run_out_of_memory(service)
        findings = send_extremes(service, options.requests, seed=options.seed)
    report(findings, shortage)
    problems = findings.problems + shortage.problems(max_p99_s=MAX_P99_S)
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{len(problems)} problems in {time.perf_counter() - began_s:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
