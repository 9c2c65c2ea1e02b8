"""Attacks the real service at random, then checks the history of every job.

    python -m tests.chaos.run kill --blows 1000
    python -m tests.chaos.run freeze --blows 500 --database postgresql
    python -m tests.chaos.run terminate --blows 200
    python -m tests.chaos.run freeze --mutate no-fence      # must report problems

Meanwhile, jobs are created over HTTP. Each request has an Idempotency-Key and is repeated until it
is answered; every job whose creation was acknowledged must survive. The exit code is 1 if there is
any problem. The seed is printed. The same seed repeats the order of the attacks, but not their
exact times.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
from sqlalchemy import func, select

from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.storage.local import LocalBlobStore
from benchmarks.support.databases import new_database
from tests.builders import write_catalogue
from tests.chaos.attacks import Attacks
from tests.chaos.history import StuckWatch, check_history
from tests.waiting import wait_until
from tunery.local_service import LocalService

WORKERS = 3
LEASES_S = {"kill": 5.0, "freeze": 2.0, "terminate": 10.0}
GRACE_S = 10.0
PAUSE_S = {"kill": 0.2, "freeze": 0.3, "terminate": 0.5}
"""Mean time between two attacks."""

WAITING = 6

STEPS = (20, 120)
ROUND_UP_S = 180.0
"""Maximum time for all jobs to end after the last attack, in seconds."""


class Submitter(threading.Thread):
    """Keeps the queue filled over HTTP, although the attacks also kill the API.

    Args:
        jobs: number of jobs after which it stops.
        waiting: number of unfinished jobs that it maintains.
        steps: fewest and most steps of a job.
    """

    def __init__(
        self,
        service: LocalService,
        database: Database,
        chance: random.Random,
        *,
        jobs: float = math.inf,
        waiting: int = WAITING,
        steps: tuple[int, int] = STEPS,
    ) -> None:
        super().__init__(daemon=True)
        self._waiting = waiting
        self._jobs = jobs
        self._steps = steps
        self._service = service
        self._database = database
        self._chance = chance
        self._ended = threading.Event()
        self.accepted: dict[str, bytes] = {}
        """Training data of each job whose creation was acknowledged."""

    def run(self) -> None:
        number = 0
        while number < self._jobs and not self._ended.wait(0.05):
            if self.count_unfinished() < self._waiting:
                number += 1
                self._submit(number)

    def end(self) -> None:
        self._ended.set()
        self.join()

    def count_unfinished(self) -> int:
        with self._database.reading() as session:
            query = select(func.count()).where(Job.finished_at.is_(None))
            return session.scalars(query).one()

    def _submit(self, number: int) -> None:
        line = {"text": f"Job {number} of {self._chance.random()}"}
        data = json.dumps(line).encode() + b"\n"
        file_id = self._insist(
            lambda http: http.post(
                "/files", files={"file": ("train.jsonl", data)}, data={"purpose": "fine-tune"}
            )
        )["id"]
        body = {
            "model": "tiny",
            "training_file": file_id,
            "hyperparameters": {
                "max_steps": self._chance.randint(*self._steps),
                "checkpoint_steps": 25,
                "logging_steps": 10,
            },
        }
        headers = {"Idempotency-Key": f"job-{number}"}
        job = self._insist(lambda http: http.post("/fine_tuning/jobs", json=body, headers=headers))
        self.accepted[job["id"]] = data

    def _insist(self, send: Callable[[httpx.Client], httpx.Response]) -> dict[str, str]:
        while True:
            try:
                with httpx.Client(base_url=self._service.base_url, timeout=30) as http:
                    answer = send(http)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            assert answer.status_code in {200, 503}, answer.text
            if answer.status_code == 200:
                return answer.json()


def attack(
    how: str,
    *,
    blows: int,
    url: str,
    data_dir: Path,
    seed: int,
    limit_s: float = 1e9,
    slack_s: float = 10.0,
    mutation: str = "",
) -> list[str]:
    """Make `blows` attacks, let the service finish its jobs, and return all problems.

    Args:
        mutation: the safeguard that `tests.chaos.worker` turns off, to test this program.
        slack_s: how long after its lease expires a job may wait for recovery, in seconds.
    """
    write_catalogue(data_dir)
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    settings = {
        "database_url": url,
        "concurrency": str(WORKERS),
        "lease_s": str(LEASES_S[how]),
        "stop_grace_s": str(GRACE_S),
        "poll_interval_s": "0.05",
        "install_default_model": "false",
        "test_mutation": mutation,
    }
    database = Database(url)
    began = time.monotonic()
    with LocalService(
        data_dir, settings, workers=WORKERS, worker_module="tests.chaos.worker"
    ) as service:
        submitter = Submitter(service, database, chance)
        attacks = Attacks(service, database, chance=chance, grace_s=GRACE_S, lease_s=LEASES_S[how])
        watch = StuckWatch(
            database, slack_s=slack_s, is_disturbed=lambda: attacks.is_anybody_frozen
        )
        submitter.start()
        watch.start()
        strike = {
            "kill": attacks.kill, "freeze": attacks.freeze, "terminate": attacks.terminate
        }[how]  # fmt: skip
        while attacks.blows < blows and time.monotonic() - began < limit_s:
            time.sleep(chance.expovariate(1 / PAUSE_S[how]))
            strike()
            service.start_ended()
        attacks.end()
        submitter.end()
        service.start_ended()
        with suppress(AssertionError):  # `check_history` reports unfinished jobs
            wait_until(lambda: submitter.count_unfinished() == 0, within_s=ROUND_UP_S)
        watch.end()
    wrong = check_history(database, LocalBlobStore(data_dir / "blobs"), submitter.accepted)
    wrong += [f"{job_id}: it was not recovered in time" for job_id in watch.stuck]
    with database.reading() as session:
        attempts = session.scalars(select(func.sum(Job.attempt))).one()
        crashes = session.scalars(select(func.count()).where(Job.interruptions > 0)).one()
    if how == "terminate" and crashes:
        wrong.append(f"{crashes} jobs counted an interruption when a worker was told to stop")
    report = {
        "attack": how,
        "database": database.engine.dialect.name,
        "seed": seed,
        "attacks": attacks.blows,
        **attacks.counts,
        "jobs": len(submitter.accepted),
        "attempts": attempts,
        "seconds": round(time.monotonic() - began),
        "checks for stuck jobs": watch.looks,
        "slowest stop (s)": round(attacks.slowest_end_s, 1),
        "problems": len(wrong),
    }
    print(json.dumps(report, indent=2), flush=True)
    database.dispose()
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("how", choices=list(LEASES_S), help="what to do to the processes")
    parser.add_argument("--blows", type=int, default=1000, help="number of attacks")
    parser.add_argument("--limit-s", type=float, default=1e9, help="maximum time, in seconds")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: random)")
    parser.add_argument(
        "--mutate",
        choices=["no-fence"],
        default="",
        help="turn a safeguard off, to see that the checks notice",
    )
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory)
        with new_database(options.database, data_dir) as url:
            wrong = attack(
                options.how,
                blows=options.blows,
                url=url,
                data_dir=data_dir,
                seed=seed,
                limit_s=options.limit_s,
                mutation=options.mutate,
            )
    for line in wrong[:50]:
        print(f"PROBLEM {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
