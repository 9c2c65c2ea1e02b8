"""Watch a Ray cluster lose a node, and no job: the whole of a large installation on one machine.

    make cluster-demo

It starts PostgreSQL, an S3 server, a Ray head with two nodes, the API and a dispatcher, all from
packages. Four equal jobs are created with the stock `openai` client. One node is killed while it
trains. Every adapter is then downloaded and verified, and all four must be the same to the bit.
Runs from a checkout, because it starts the servers with which Tunery is tested.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.cluster.installation import Installation, installed
from tests.models import link_embedded_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = "smollm2-135m-instruct"
JOBS = 4
STEPS_BEFORE_THE_KILL = 6
HYPERPARAMETERS = {"max_steps": 24, "batch_size": 2, "context_length": 128, "checkpoint_steps": 12}
LIMIT_S = 900.0
POLL_S = 0.5
ENDED = ("succeeded", "failed", "cancelled")


class DemoError(Exception):
    """The demo did not show what it is there to show; the message says why."""


class Timeline:
    """Prints what happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._told: dict[str, tuple[object, ...]] = {}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_s:7.1f} s  {text}", flush=True)

    def follow(self, name: str, job: Any) -> None:
        """Print where the job is, if that has changed."""
        now = (job.status, job.attempt)
        if self._told.get(name) != now:
            attempt = f", attempt {job.attempt}" if job.attempt > 1 else ""
            self.say(f"{name} is {job.status} at step {job.trained_steps}{attempt}")
        self._told[name] = now


def main() -> int:
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: stop what we started
        signal.signal(ending, signal.default_int_handler)
    timeline = Timeline()
    with tempfile.TemporaryDirectory(prefix="tunery-cluster-") as directory:
        root = Path(directory)
        try:
            timeline.say(
                "starting PostgreSQL, an S3 server, a Ray head, two nodes, API, dispatcher"
            )
            with installed(
                root,
                prepare=link_embedded_model,
                dispatchers=1,
                worker_module="worker",
                settings={"save_interval_s": "5"},
            ) as all_of_it:
                timeline.say(f"the API answers at {all_of_it.service.base_url}")
                show(all_of_it, timeline)
        except DemoError as error:
            print(f"\nThe demo failed. {error}")
            for log in sorted(root.rglob("worker-1.log")):
                print("\n".join(log.read_text("utf-8").splitlines()[-20:]))
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted; everything that was started is stopped.")
            return 130
    timeline.say("everything is stopped and removed")
    return 0


def show(all_of_it: Installation, timeline: Timeline) -> None:
    """Run the jobs, kill a node, and check what comes of it."""
    client = OpenAI(base_url=all_of_it.service.base_url, api_key="not-needed")
    with (EXAMPLES / "lighthouse-train.jsonl").open("rb") as source:
        file = client.files.create(file=source, purpose="fine-tune")
    names: dict[str, str] = {}
    for number in range(1, JOBS + 1):
        job = client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=file.id,
            seed=42,
            method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},  # pyright: ignore[reportArgumentType] - the client sends knobs it does not know as they are
        )
        names[job.id] = f"job {number}"
        timeline.say(f"job {number} is {job.id}")
    watch(client, all_of_it, names, timeline)
    for job_id, name in names.items():
        show_attempts(client, job_id, name)
    verify(all_of_it, list(names), timeline)
    leaks = all_of_it.find_leaks()
    if leaks:
        raise DemoError("\n".join(leaks))
    timeline.say("no process is left over, and Ray has all of its resources back")


def watch(
    client: OpenAI, all_of_it: Installation, names: dict[str, str], timeline: Timeline
) -> None:
    """Follow the jobs until all have ended, and kill a node on the way."""
    deadline_s = time.monotonic() + LIMIT_S
    has_killed = False
    while True:
        jobs: list[Any] = [client.fine_tuning.jobs.retrieve(job_id) for job_id in names]
        for job in jobs:
            timeline.follow(names[job.id], job)
        running = [job for job in jobs if job.status == "running"]
        training = [one.id for one in running if (one.trained_steps or 0) >= STEPS_BEFORE_THE_KILL]
        has_killed = has_killed or kill_a_node(all_of_it, training, timeline)
        if all(job.status in ENDED for job in jobs):
            break
        if time.monotonic() > deadline_s:
            raise DemoError(f"The jobs have not ended within {LIMIT_S:.0f} s.")
        time.sleep(POLL_S)
    failed = [f"{names[job.id]} is {job.status}" for job in jobs if job.status != "succeeded"]
    if failed:
        raise DemoError(f"{', '.join(failed)}.")
    if not any(job.attempt > 1 for job in jobs):
        raise DemoError("No job has lost its node.")


def kill_a_node(all_of_it: Installation, job_ids: list[str], timeline: Timeline) -> bool:
    """Kill a node that trains one of these jobs, and start it again, if there is one."""
    cluster = all_of_it.cluster
    busy = [name for name in cluster.node_names if any(cluster.find(name, it) for it in job_ids)]
    if not busy:
        return False
    cluster.kill(busy[0])
    timeline.say(f"killed {busy[0]} with SIGKILL while it trains")
    cluster.restore()
    timeline.say(f"started {busy[0]} again")
    return True


def show_attempts(client: OpenAI, job_id: str, name: str) -> None:
    """Print which attempts a job took, and why each of them ended."""
    found = client.get(f"/fine_tuning/jobs/{job_id}/attempts", cast_to=dict[str, Any])
    for attempt in found["data"]:
        took_s = (attempt["ended_at"] or 0) - attempt["started_at"]
        print(
            f"           {name}, attempt {attempt['attempt']}: steps {attempt['from_step']} to "
            f"{attempt['to_step']} in {took_s} s. {attempt['cause']}"
        )


def verify(all_of_it: Installation, job_ids: list[str], timeline: Timeline) -> None:
    """Download each adapter and verify its signature and bytes, then compare all of them."""
    key = all_of_it.root / "key.pem"
    signing = {"TUNERY_DATA_DIR": str(all_of_it.root / "api")}
    key.write_text(run("signing-key", "show", environment=signing))
    sha256s: set[str] = set()
    for job_id in job_ids:
        adapter = all_of_it.root / job_id
        reach = {"TUNERY_BASE_URL": all_of_it.service.base_url}
        run("download", job_id, "--unpack", "--output", str(adapter), environment=reach)
        run("verify", str(adapter), "--key", str(key), environment={})
        weights = (adapter / "adapter_model.safetensors").read_bytes()
        sha256s.add(hashlib.sha256(weights).hexdigest())
    timeline.say(f"downloaded and verified {len(job_ids)} adapters")
    if len(sha256s) != 1:
        raise DemoError(f"Equal jobs have made {len(sha256s)} different adapters.")
    timeline.say(f"all adapters are the same to the bit: sha256 {sha256s.pop()[:16]}...")


def run(*arguments: str, environment: dict[str, str]) -> str:
    """Run a `tunery` command and return its output.

    Raises:
        DemoError: it failed.
    """
    clean = {name: text for name, text in os.environ.items() if not name.startswith("TUNERY_")}
    command = [sys.executable, "-m", "tunery", *arguments]
    done = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"tunery {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
