"""Attacks a service whose jobs run in a Ray cluster, then checks the history of every job.

    python -m tests.cluster.run --blows 200

It kills actors, raylets, the head and dispatchers with SIGKILL, in an order that the seed decides.
Two dispatchers share the queue. The exit code is 1 if there is any problem: a job that did not
succeed, was published twice or has wrong bits, a process that is left, a place that Ray has not got
back.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from sqlalchemy import func, select

from app.core.db.tables import Job
from tests.builders import write_catalogue
from tests.chaos.history import StuckWatch, check_history
from tests.chaos.run import Submitter
from tests.cluster.installation import Installation, installed
from tests.waiting import wait_until

PAUSE_S = 2.0
"""Mean time between two blows, besides the time that a node takes to start again."""

WEIGHTS = {"actor": 9, "dispatcher": 5, "raylet": 5, "head": 1}
SLACK_S = 90.0
ROUND_UP_S = 240.0
MAX_IDLE_S = 120.0
"""Time without a blow after which something must be wrong, in seconds."""


class ClusterAttacks:
    """Strikes once at a time, and counts it.

    Args:
        chance: decides who is struck.
    """

    def __init__(self, installation: Installation, chance: random.Random) -> None:
        self._service = installation.service
        self._cluster = installation.cluster
        self._chance = chance
        self.counts: Counter[str] = Counter()

    def strike(self, kind: str) -> None:
        """Kill one of this kind, if there is one, and start it again."""
        nodes = self._chance.sample(self._cluster.node_names, k=2)
        match kind:
            case "actor":
                has_struck = any(self._cluster.kill_actor(name) for name in nodes)
            case "raylet":
                has_struck = self._cluster.kill(nodes[0])
            case "head":
                has_struck = self._cluster.kill("head")
            case _:
                process = self._service.processes[self._chance.choice(self._service.worker_names)]
                has_struck = process.is_running
                if has_struck:
                    process.stop(signal.SIGKILL)
        self.counts[kind] += has_struck
        if kind in {"raylet", "head"}:
            time.sleep(self._chance.uniform(0, 3))
            self._cluster.restore()
        self._service.start_ended()


def attack(root: Path, *, blows: int, seed: int) -> list[str]:
    """Strike so many times, let the jobs end, and return all problems."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    began = time.monotonic()
    with installed(root, prepare=write_catalogue) as all_of_it:
        submitter = Submitter(all_of_it.service, all_of_it.database, chance, steps=(100, 400))
        attacks = ClusterAttacks(all_of_it, chance)
        watch = StuckWatch(all_of_it.database, slack_s=SLACK_S, is_disturbed=lambda: False)
        submitter.start()
        watch.start()
        struck_s = time.monotonic()
        while (before := attacks.counts.total()) < blows:
            time.sleep(chance.expovariate(1 / PAUSE_S))
            attacks.strike(chance.choices([*WEIGHTS], weights=[*WEIGHTS.values()])[0])
            if attacks.counts.total() > before:
                struck_s = time.monotonic()
            assert time.monotonic() - struck_s < MAX_IDLE_S, "there is nothing to strike"
        submitter.end()
        with suppress(AssertionError):  # `check_history` reports unfinished jobs
            wait_until(lambda: submitter.count_unfinished() == 0, within_s=ROUND_UP_S)
        watch.end()
        wrong = check_history(all_of_it.database, all_of_it.store, submitter.accepted)
        wrong += [f"{job_id}: it was not recovered in time" for job_id in watch.stuck]
        wrong += all_of_it.find_leaks()
        with all_of_it.database.reading() as session:
            attempts = session.scalars(select(func.sum(Job.attempt))).one()
            most = session.scalars(select(func.max(Job.attempt))).one()
    report = {
        "seed": seed,
        "blows": attacks.counts.total(),
        **attacks.counts,
        "jobs": len(submitter.accepted),
        "attempts": attempts,
        "most attempts of a job": most,
        "seconds": round(time.monotonic() - began),
        "problems": len(wrong),
    }
    print(json.dumps(report, indent=2), flush=True)  # noqa: T201 - its report
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: random)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    with tempfile.TemporaryDirectory() as directory:
        wrong = attack(Path(directory), blows=options.blows, seed=seed)
    for line in wrong[:50]:
        print(f"PROBLEM {line}")  # noqa: T201 - its report
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
