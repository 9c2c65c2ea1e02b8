"""Kills workers on three machines and cuts them off, then checks the history of every job.

    python -m tests.chaos.network.run --jobs 500 --kills 300 --partitions 30
    python -m tests.chaos.network.run --mutate no-fence      # must report problems

Each worker is in a network namespace of its own, with a data directory of its own. It reaches one
PostgreSQL server and one S3 server through links that stall, lose one direction, reset, or lose
every packet. The API is in the namespace of this process. It needs root, `ip` and `make stores`.

Jobs are created over HTTP as in `tests.chaos.run`, and the attacks are spread evenly over them. The
exit code is 1 if there is any problem. The seed is printed: it repeats the order of the attacks,
but not their exact times.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.attacks import Attacks
from tests.chaos.history import StuckWatch, check_history
from tests.chaos.network.link import Fault
from tests.chaos.network.machines import SERVERS, Machine, Server
from tests.chaos.network.results import check_results, check_store, count_attempts, find_processes
from tests.chaos.network.scene import GRACE_S, LEASE_S, MACHINES, Scene
from tests.chaos.run import Submitter
from tests.stores.servers import NAMES
from tests.waiting import wait_until

PARTITION_S = (0.2 * LEASE_S, 3 * LEASE_S)
"""Shortest and longest time for which a machine is cut off: some end before its lease, and some
long after."""

WAITING = 3 * MACHINES
PAUSE_S = 0.2
TOLD_EVERY_S = 60.0
STUCK_S = 60.0
"""How long after its lease expires a job may wait for recovery, in seconds. Machines that test are
busy, and a worker that was killed takes long to start there."""

ROUND_UP_S = 300.0
"""Maximum time for all jobs to end after the last attack, in seconds."""

FAULTS = (None, Fault.STALL, Fault.MUTE, Fault.DEAF, Fault.RESET)
"""None: the cable is unplugged."""


class Kills:
    """Kills most often children, although they are rarely there: it waits for one then."""

    def __init__(self, attacks: Attacks, chance: random.Random) -> None:
        self._attacks = attacks
        self._chance = chance
        self._choose()

    def kill(self) -> None:
        """Kill what is next, if it is there."""
        before = self._attacks.blows
        self._next()
        if self._attacks.blows > before:
            self._choose()

    def _choose(self) -> None:
        kinds = [self._attacks.kill_child, self._attacks.kill_worker, self._attacks.kill_api]
        self._next = self._chance.choices(kinds, weights=[8, 3, 1])[0]


@dataclass(frozen=True, slots=True)
class _Partition:
    machine: Machine
    server: Server
    ends_s: float
    delivers: bool


class Partitions:
    """Cuts machines off from a server, for a while each.

    One machine at least is left alone, so that the jobs of the others are taken over.
    """

    def __init__(self, machines: Mapping[str, Machine], chance: random.Random) -> None:
        self._machines = machines
        self._chance = chance
        self._open: list[_Partition] = []
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def cut(self) -> None:
        """Begin a partition, if not too many machines have one already."""
        cut_off = {one.machine.name for one in self._open}
        others = [machine for name, machine in self._machines.items() if name not in cut_off]
        if len(others) < 2:
            return
        machine, fault = self._chance.choice(others), self._chance.choice(FAULTS)
        server = self._chance.choice(SERVERS)
        ends_s = time.monotonic() + self._chance.uniform(*PARTITION_S)
        machine.fail(server, fault)
        delivers = self._chance.random() < 0.5
        self._open.append(_Partition(machine, server, ends_s, delivers))
        self.counts[f"{server} {'unplugged' if fault is None else fault.name.lower()}"] += 1

    def heal(self, *, all_of_them: bool = False) -> None:
        """End the partitions whose time is over."""
        for one in list(self._open):
            if all_of_them or time.monotonic() > one.ends_s:
                one.machine.heal(one.server, delivers=one.delivers)
                self._open.remove(one)


def attack(
    directory: Path,
    *,
    jobs: int,
    kills: int,
    partitions: int,
    seed: int,
    store: str = NAMES[0],
    mutation: str = "",
    limit_s: float = 1e9,
) -> list[str]:
    """Attack the machines, let them finish all jobs, and return all problems.

    Args:
        limit_s: time after which no more jobs are created and nobody is attacked, in seconds.
    """
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    began_s = told_s = time.monotonic()
    with Scene(directory, store=store, mutation=mutation) as scene:
        database = scene.database
        submitter = Submitter(scene.service, database, chance, jobs=jobs, waiting=WAITING)
        attacks = Attacks(scene.fleet, database, chance=chance, grace_s=GRACE_S, lease_s=LEASE_S)
        killer = Kills(attacks, chance)
        cuts = Partitions(scene.machines, chance)
        watch = StuckWatch(database, slack_s=STUCK_S, is_disturbed=lambda: False)
        submitter.start()
        watch.start()
        while attacks.blows < kills or cuts.total < partitions or submitter.is_alive():
            time.sleep(chance.expovariate(1 / PAUSE_S))
            if time.monotonic() - began_s > limit_s:
                break
            if time.monotonic() - told_s > TOLD_EVERY_S:
                told_s += TOLD_EVERY_S
                print(f"{len(submitter.accepted)} jobs, {attacks.blows} kills, {cuts.total} cuts")
            share = len(submitter.accepted) / jobs
            if attacks.blows < kills * share:
                killer.kill()
            if cuts.total < partitions * share:
                cuts.cut()
            cuts.heal()
            scene.fleet.start_ended()
        cuts.heal(all_of_them=True)
        submitter.end()
        with suppress(AssertionError):  # `check_history` reports unfinished jobs
            wait_until(lambda: submitter.count_unfinished() == 0, within_s=ROUND_UP_S)
        watch.end()
        scene.end_workers()
        wrong = [f"process {pid} is left over" for pid in find_processes(directory)]
        wrong += check_history(database, scene.blobs, submitter.accepted)
        wrong += [f"{job_id}: it was not recovered in time" for job_id in watch.stuck]
        wrong += check_results(database)
        wrong += check_store(database, scene.blobs, scene.settings)
        report = {
            "seed": seed,
            "store": store,
            "jobs": len(submitter.accepted),
            "kills": attacks.blows,
            **attacks.counts,
            "partitions": cuts.total,
            **dict(sorted(cuts.counts.items())),
            "connections": sum(machine.connections for machine in scene.machines.values()),
            **count_attempts(database),
            "seconds": round(time.monotonic() - began_s),
            "problems": len(wrong),
        }
    print(json.dumps(report, indent=2), flush=True)
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--partitions", type=int, default=30)
    parser.add_argument("--limit-s", type=float, default=1e9, help="maximum time, in seconds")
    parser.add_argument("--store", choices=NAMES, default=NAMES[0])
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: random)")
    parser.add_argument("--keep", action="store_true", help="keep the logs of the processes")
    parser.add_argument(
        "--mutate",
        choices=["no-fence"],
        default="",
        help="turn a safeguard off, to see that the checks notice",
    )
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="tunery-network-"))
    try:
        wrong = attack(
            directory,
            jobs=options.jobs,
            kills=options.kills,
            partitions=options.partitions,
            seed=seed,
            store=options.store,
            limit_s=options.limit_s,
            mutation=options.mutate,
        )
    finally:
        if not options.keep:
            shutil.rmtree(directory)
    for line in wrong[:50]:
        print(f"PROBLEM {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
