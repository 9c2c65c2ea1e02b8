"""What durability costs: saving states while training, and queues in large tables.

    python benchmarks/durability.py training      # about 5 minutes, on a quiet machine
    python benchmarks/durability.py queue         # about 5 minutes, half of it to fill the tables

`training` runs the real child on the 135M model, in turn with and without time-based states, and
compares the time of the whole loop, and says what one state costs. `queue` times what API and
workers ask of the database with 1,000 jobs in it and with 1,000,000, in turn.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from typing import TYPE_CHECKING

from app.core.clock import utc_now
from app.core.db.jobs import JobRepository
from app.core.db.leases import Lease, LeaseRepository
from app.core.db.migrate import upgrade
from app.core.db.recovery import RecoveryRepository
from app.core.db.session import Database
from app.core.job_status import JobStatus
from app.core.training_config import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    OUTPUT_NAME,
    TRAINING_DATA_NAME,
    BaseModelRef,
    DatasetRef,
    JobSpec,
    TrainingConfig,
)
from tests.builders import build_chat_file, build_identity, build_job
from tests.chaos.claims import fill
from tests.chaos.run import new_database

if TYPE_CHECKING:
    from app.core.db.models import Job

MINUTE = timedelta(minutes=1)


def train(model: Path, *, save_interval_s: float, steps: int, threads: int) -> dict[str, float]:
    """Run one job in the real child. Returns seconds from the first step to the last, and more."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / OUTPUT_NAME).mkdir()
        (directory / TRAINING_DATA_NAME).write_bytes(build_chat_file(200))
        (directory / BASE_MODEL_NAME).symlink_to(model.resolve())
        spec = JobSpec(
            job_id="ftjob-1",
            attempt=1,
            fine_tuned_model="ft:x",
            base_model=BaseModelRef(id="x", repo="x/x", revision=None, licence="x", sha256="0"),
            training_file=DatasetRef(
                file_id="file-1", filename="a", sha256="0", bytes=1, examples=200
            ),
            validation_file=None,
            config=TrainingConfig(seed=1, max_steps=steps, checkpoint_steps=10**6, epochs=50),
            threads=threads,
            save_interval_s=save_interval_s,
        )
        (directory / JOB_SPEC_NAME).write_text(spec.model_dump_json())
        child = subprocess.Popen(
            [sys.executable, "-m", "worker.train", str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        times: list[float] = []
        pure_s, states = 0.0, 0
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            if event["kind"] == "stepped":
                times.append(time.monotonic())
                pure_s = event["metrics"]["elapsed_s"]
            states += event["kind"] == "saved"
        assert child.wait() == 0
        return {"loop_s": times[-1] - times[0], "pure_s": pure_s, "states": states}


def compare_training(model: Path, *, rounds: int, steps: int, threads: int) -> None:
    often, never = [], []
    for _ in range(rounds):
        never.append(train(model, save_interval_s=1e6, steps=steps, threads=threads))
        often.append(train(model, save_interval_s=2.0, steps=steps, threads=threads))
    extra_s = [
        (a["loop_s"] - a["pure_s"] - (b["loop_s"] - b["pure_s"])) / a["states"]
        for a, b in zip(often, never, strict=True)
    ]
    state_s = statistics.median(extra_s)
    print(f"steps: {steps}, threads: {threads}, rounds: {rounds}")
    for name, runs in (("without", never), ("every 2 s", often)):
        loops = [run["loop_s"] for run in runs]
        states = [run["states"] for run in runs]
        print(f"states {name}: loop {statistics.median(loops):.1f} s {loops}, states {states}")
    print(f"one state: {state_s:.3f} s of a stopped loop (median of {extra_s})")
    print(f"at the default of one every 120 s: {100 * state_s / 120:.2f} % of the time")


def compare_queues(kind: str, *, large: int, rounds: int) -> None:
    with (
        tempfile.TemporaryDirectory() as first,
        tempfile.TemporaryDirectory() as second,
        new_database(kind, Path(first)) as small_url,
        new_database(kind, Path(second)) as large_url,
    ):
        databases = {1000: Database(small_url), large: Database(large_url)}
        for jobs, database in databases.items():
            upgrade(database)
            fill(database, jobs, JobStatus.CANCELLED)
        took: dict[str, dict[int, list[float]]] = {}
        for _ in range(rounds):
            for jobs, database in databases.items():
                for name, seconds in time_operations(database).items():
                    took.setdefault(name, {}).setdefault(jobs, []).append(seconds)
        print(f"{kind}: medians of {rounds} in turn, milliseconds")
        for name, by_size in took.items():
            small, big = (statistics.median(by_size[jobs]) for jobs in databases)
            print(f"  {name:10} {1000 * small:8.2f} {1000 * big:8.2f}   ratio {big / small:.2f}")
        for database in databases.values():
            database.dispose()


def time_operations(database: Database) -> dict[str, float]:
    """Each once: a job is made, looked at, listed, claimed, kept, ended."""
    took: dict[str, float] = {}
    job: Job = build_job()
    leases: list[Lease] = []

    def timed(name: str, act: Callable[[], object]) -> None:
        began = time.perf_counter()
        act()
        took[name] = time.perf_counter() - began

    def create() -> None:
        with database.writing() as session:
            JobRepository(session).add(job)

    def look() -> None:
        with database.reading() as session:
            jobs = JobRepository(session)
            jobs.queue_position(jobs.get(job.id))

    def list_page() -> None:
        with database.reading() as session:
            JobRepository(session).list_page(after=None, limit=20, metadata={})

    def claim() -> None:
        with database.writing() as session:
            lease = LeaseRepository(session).claim(
                build_identity(), now=utc_now(), lease_for=MINUTE
            )
            assert lease is not None
            leases.append(lease)

    def renew() -> None:
        with database.writing() as session:
            LeaseRepository(session).renew(leases[0], until=utc_now() + MINUTE)

    def rescue() -> None:
        with database.writing() as session:
            RecoveryRepository(session).rescue_expired(now=utc_now())

    def finish() -> None:
        with database.writing() as session:
            LeaseRepository(session).finish(leases[0], JobStatus.CANCELLED, now=utc_now())

    for name, act in (
        ("create", create),
        ("retrieve", look),
        ("list", list_page),
        ("claim", claim),
        ("renew", renew),
        ("rescue", rescue),
        ("finish", finish),
    ):
        timed(name, act)
    return took


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["training", "queue"])
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args(arguments)
    if options.what == "training":
        compare_training(
            options.model, rounds=options.rounds, steps=options.steps, threads=options.threads
        )
    else:
        compare_queues(options.database, large=options.jobs, rounds=max(options.rounds, 50))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
