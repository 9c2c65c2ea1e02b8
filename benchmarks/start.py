"""How long a job waits for its first optimizer step, on a cold worker and on a warm one.

    python benchmarks/start.py                    # about 3 minutes, on a quiet machine

It runs the real API and the real worker on a data directory of its own, which borrows the base
model of `make model`. Measured is the time from the request that makes a job to the moment at which

- its child has taken its first step, as the child says (`first step`), and
- the step can be read from `GET .../metrics`, which is what a user sees (`in the loss log`).

`claim to step` is the time from the worker's claim to the start of the computation of the first
step: all that a start costs, without the check of the data before it and without the step itself.

Cold is a job of a worker with `TUNERY_WARM_S=0`, which starts each from nothing. Otherwise the
first job of a worker comes after the libraries were preloaded, and warm is each one after it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from benchmarks.support.samples import build_chat_file
from tunery.local_service import LocalService
from worker.launch.locks import try_lock

LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Start:
    """A finished job, and seconds from the request that created it."""

    job_id: str
    stepped_s: float
    """Until its first step."""
    logged_s: float
    """Until the row of that step was in the loss log."""
    prepared_s: float
    """From the claim to the start of that step."""


def measure(http: httpx.Client, data_dir: Path, model: str, steps: int) -> Start:
    """Run a job to its end."""
    file = ("train.jsonl", build_chat_file(64))
    training_file = http.post("/files", files={"file": file}, data={"purpose": "fine-tune"})
    body = {
        "model": model,
        "training_file": training_file.raise_for_status().json()["id"],
        "hyperparameters": {"max_steps": steps},
    }
    began = time.monotonic()
    job = http.post("/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
    log = data_dir / "work" / job / "attempt-1" / "loss-log.jsonl"
    stepped_s, stepped_at = 0.0, 0.0
    while True:
        if not stepped_s and log.exists() and log.stat().st_size:
            stepped_s, stepped_at = time.monotonic() - began, time.time()
        rows = http.get(f"/fine_tuning/jobs/{job}/metrics").raise_for_status().json()["data"]
        if rows:
            logged_s = time.monotonic() - began
            break
        time.sleep(LOOK_S)
    while http.get(f"/fine_tuning/jobs/{job}").json()["finished_at"] is None:
        time.sleep(0.1)
    prepared_s = stepped_at - rows[0]["elapsed_s"] - _claimed_at(data_dir, job)
    return Start(job, stepped_s or logged_s, logged_s, prepared_s)


def _claimed_at(data_dir: Path, job: str) -> float:
    """When a worker claimed the job, as the database has it."""
    database = Database(f"sqlite:///{data_dir / 'tunery.db'}")
    with database.reading() as session:
        (attempt,) = JobRepository(session, DEFAULT_PROJECT_ID).list_attempts(job, limit=1)
        claimed_at = attempt.started_at.timestamp()
    database.dispose()
    return claimed_at


def await_preloading(data_dir: Path) -> None:
    """Return once a worker has preloaded: then nobody holds the lock that it has made."""
    lock = data_dir / "workers" / "preload.lock"
    while not lock.exists() or (descriptor := try_lock(lock)) is None:
        time.sleep(LOOK_S)
    os.close(descriptor)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("data/models"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--warm-jobs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args(arguments)
    runs: dict[str, list[Start]] = {}
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name)
        (data_dir / "models").symlink_to(options.models.resolve(strict=True))
        for kind, warm_s, jobs in (("cold", "0", 1), ("warm", "600", 1 + options.warm_jobs)):
            settings = {"warm_s": warm_s, "install_default_model": "false"}
            with (
                LocalService(data_dir, settings) as service,
                httpx.Client(base_url=service.base_url, timeout=60) as http,
            ):
                if kind == "warm":
                    await_preloading(data_dir)
                found = [measure(http, data_dir, options.model, options.steps) for _ in range(jobs)]
            if kind == "warm":
                runs["first of a worker"] = found[:1]
            runs[kind] = found[1:] if kind == "warm" else found
    print(f"{options.model}: seconds from POST to the first optimizer step, medians")
    heads = ("first step", "in the loss log", "claim to step")
    print(f"{'start':20} {'jobs':>4} {heads[0]:>12} {heads[1]:>16} {heads[2]:>16}")
    for kind, found in runs.items():
        steps_s = statistics.median(start.stepped_s for start in found)
        logs_s = statistics.median(start.logged_s for start in found)
        prepared_s = statistics.median(start.prepared_s for start in found)
        print(f"{kind:20} {len(found):4} {steps_s:12.2f} {logs_s:16.2f} {prepared_s:16.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
