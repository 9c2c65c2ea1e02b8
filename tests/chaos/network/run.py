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
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from sqlalchemy import func, make_url, select

from app.core import orphans
from app.core.db.blob_keys import BlobKeyRepository
from app.core.db.session import Database
from app.core.db.tables import Event, File, Job
from app.core.db.worker_tables import Attempt
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore
from benchmarks.support.databases import new_database
from tests.builders import write_catalogue
from tests.chaos.attacks import Attacks
from tests.chaos.history import StuckWatch, check_history
from tests.chaos.network.link import Fault, Relays
from tests.chaos.network.machines import SERVERS, Machine, Server
from tests.chaos.run import Submitter
from tests.children import find_children
from tests.stores.servers import BUCKET, NAMES, StoreServer, environment_of
from tests.waiting import wait_until
from tunery.local_service import LocalService
from tunery.logged_process import LoggedProcess

MACHINES = 3
LEASE_S = 5.0
GRACE_S = 10.0
PARTITION_S = (0.2 * LEASE_S, 3 * LEASE_S)
"""Shortest and longest time for which a machine is cut off: some end before its lease, and some
long after."""

PAUSE_S = 0.2
ROUND_UP_S = 300.0
"""Maximum time for all jobs to end after the last attack, in seconds."""

FAULTS = (None, Fault.STALL, Fault.MUTE, Fault.DEAF, Fault.RESET)
"""None: the cable is unplugged."""


class Machines:
    """The machines and the API: what `Attacks` attacks."""

    def __init__(self, service: LocalService, machines: Mapping[str, Machine]) -> None:
        self.worker_names = list(machines)
        self._machines = machines
        workers = {name: machine.process for name, machine in machines.items()}
        self.processes: Mapping[str, LoggedProcess] = {**service.processes, **workers}

    def find_children(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for machine in self._machines.values():
            found |= find_children(machine.data_dir)
        return found

    def start_ended(self) -> None:
        for process in self.processes.values():
            if not process.is_running:
                process.start()


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
    store: str = "localbucket",
    mutation: str = "",
) -> list[str]:
    """Attack the machines, let them finish all jobs, and return all problems.

    Args:
        store: the S3 server, one of `tests.stores.servers.NAMES`.
        mutation: the safeguard that `tests.chaos.worker` turns off, to test this program.
    """
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    began_s = time.monotonic()
    with ExitStack() as stack:
        url = stack.enter_context(new_database("postgresql", directory))
        server = StoreServer(store, directory / "store").start()
        stack.callback(server.close)
        stack.enter_context(mock.patch.dict(os.environ, server.environment()))
        relays = stack.enter_context(Relays())
        targets: dict[Server, tuple[str, int] | Path] = {
            "database": Path(str(make_url(url).query["host"])) / ".s.PGSQL.5432",
            "store": ("127.0.0.1", server.port),
        }
        common = {
            "database_url": url,
            "store_url": f"s3://{BUCKET}/tunery",
            "lease_s": str(LEASE_S),
            "stop_grace_s": str(GRACE_S),
            "poll_interval_s": "0.05",
            "install_default_model": "false",
            "test_mutation": mutation,
        }
        write_catalogue(directory / "api")
        SigningKeys(directory / "api/signing").ensure()
        service = LocalService(directory / "api", common, workers=0)
        stack.enter_context(service)
        locks = directory / "locks"
        locks.mkdir(mode=0o755)
        machines: dict[str, Machine] = {}
        for number in range(1, MACHINES + 1):
            name = f"worker-{number}"
            home = directory / name
            machine = stack.enter_context(Machine(name, home, relays, targets))
            shutil.copytree(service.data_dir / "signing", machine.data_dir / "signing")
            machine.prepare(
                {**common, "database_url": machine.database_url(url)},
                {**environment_of(machine.store_endpoint()), "TUNERY_TEST_LOCKS": str(locks)},
            )
            machines[name] = machine
        fleet = Machines(service, machines)
        stack.callback(_end_workers, machines)
        fleet.start_ended()

        database = Database(url)
        stack.callback(database.dispose)
        submitter = Submitter(service, database, chance, jobs=jobs)
        attacks = Attacks(fleet, database, chance=chance, grace_s=GRACE_S, lease_s=LEASE_S)
        cuts = Partitions(machines, chance)
        watch = StuckWatch(database, slack_s=4 * LEASE_S + 10, is_disturbed=lambda: False)
        submitter.start()
        watch.start()
        while attacks.blows < kills or cuts.total < partitions:
            time.sleep(chance.expovariate(1 / PAUSE_S))
            share = len(submitter.accepted) / jobs
            if attacks.blows < kills * share:
                attacks.kill()
            if cuts.total < partitions * share:
                cuts.cut()
            cuts.heal()
            fleet.start_ended()
        cuts.heal(all_of_them=True)
        submitter.join()
        fleet.start_ended()
        with suppress(AssertionError):  # `check_history` reports unfinished jobs
            wait_until(lambda: submitter.count_unfinished() == 0, within_s=ROUND_UP_S)
        watch.end()
        _end_workers(machines)
        wrong = [f"process {pid} is left over" for pid in find_processes(directory)]
        blobs = server.store(directory / "scratch", prefix="tunery")
        wrong += check_history(database, blobs, submitter.accepted)
        wrong += [f"{job_id}: it was not recovered in time" for job_id in watch.stuck]
        wrong += check_results(database)
        settings = Settings(data_dir=directory / "api", database_url=url)
        wrong += check_store(database, blobs, settings)
        report = {
            "seed": seed,
            "store": store,
            "jobs": len(submitter.accepted),
            "kills": attacks.blows,
            **attacks.counts,
            "partitions": cuts.total,
            **dict(sorted(cuts.counts.items())),
            "connections": sum(
                link.connections for one in machines.values() for link in one.links.values()
            ),
            **count_attempts(database),
            "seconds": round(time.monotonic() - began_s),
            "problems": len(wrong),
        }
    print(json.dumps(report, indent=2), flush=True)
    return wrong


def check_results(database: Database) -> list[str]:
    """What `check_history` leaves out: how often a result was published, and where steps ran."""
    wrong: list[str] = []
    with database.reading() as session:
        results = File.purpose == "fine-tune-results"
        for_jobs = select(File.job_id, func.count()).where(results, File.checkpoint_id.is_(None))
        for job_id, count in session.execute(for_jobs.group_by(File.job_id)):
            if count != 1:
                wrong.append(f"{job_id}: {count} results")
        failed = session.scalars(select(Job).where(Job.status != JobStatus.SUCCEEDED)).all()
        wrong += [f"{job.id}: its cause: {job.error}" for job in failed]
        last = select(Attempt.job_id, func.max(Attempt.attempt)).group_by(Attempt.job_id)
        numbers = dict(session.execute(last).all())
        counts = select(Attempt.job_id, func.count()).group_by(Attempt.job_id)
        for job_id, count in session.execute(counts):
            if count != numbers[job_id]:
                wrong.append(f"{job_id}: {count} attempts, and the last is {numbers[job_id]}")
    return wrong


def check_store(database: Database, store: BlobStore, settings: Settings) -> list[str]:
    """Collect orphans as if they were old; then every blob must have a row."""
    with mock.patch.object(orphans, "GRACE_S", -1e9):
        orphans.free_orphans(database, store, settings)
    keys = [blob.key for blob in store.list_all()]
    with database.reading() as session:
        named = BlobKeyRepository(session).find_named(keys)
    wrong = [f"{key}: a blob without a row" for key in keys if key not in named]
    return wrong + ([] if keys else ["the store is empty"])


def count_attempts(database: Database) -> dict[str, int]:
    with database.reading() as session:
        outcomes = select(Attempt.outcome, func.count()).group_by(Attempt.outcome)
        by_outcome = {str(name): count for name, count in session.execute(outcomes)}
        away = Event.message.startswith("The store of files does not answer")
        given_back = session.scalar(select(func.count()).where(away)) or 0
    counts = {f"attempts {name}": count for name, count in sorted(by_outcome.items())}
    return {"attempts": sum(by_outcome.values()), **counts, "given back to the queue": given_back}


def find_processes(directory: Path) -> list[int]:
    """Processes that run in the directory, or name it."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes() + bytes((process / "cwd").readlink())
            is_ours = "/worker-" in words.decode("utf-8", "replace")
            if is_ours and str(directory) in words.decode("utf-8", "replace"):
                found.append(int(process.name))
    return found


def _end_workers(machines: Mapping[str, Machine]) -> None:
    for machine in machines.values():
        if machine.process.is_running:
            machine.process.stop(within_s=GRACE_S + 40)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--partitions", type=int, default=30)
    parser.add_argument("--store", choices=NAMES, default="localbucket")
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
