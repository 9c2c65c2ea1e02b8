"""Moves a running service from its data directory to S3 and back, while it is used and killed.

    python -m tests.chaos.moving --kills 60
    python -m tests.chaos.moving --kills 60 --database postgresql

Clients upload, download, train and delete. In each of the two moves, `tunery store copy` is killed
at random moments, and so are the API and the workers. The processes are given their new settings
one after the other, so that old and new ones run side by side. Everything that was acknowledged is
read back before each move, between its two copies, and after the previous store was wiped. The
exit code is 1 if anything was lost. The seed is printed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.opening import open_store
from benchmarks.support.databases import new_database
from tests.builders import write_catalogue
from tests.chaos.ledger import Client, Ledger, Reader
from tests.stores.servers import BUCKET, StoreServer
from tests.waiting import wait_until
from tunery.local_service import LocalService

WORKERS = 2
CLIENTS = 3
LEASE_S = 5.0
WARM_UP_FILES = 20
"""Number of files that are stored before a move begins."""
PAUSE_S = 4.0
"""Mean time between two kills of a process of the service, in seconds."""
API_SHARE = 0.12
"""Fraction of these kills that hit the API, which takes seconds to start on a busy machine."""
COPY_LIVES_S = (0.3, 2.5)
"""How long a copy runs before it is killed."""
OLD_AND_NEW_S = 2.0
"""How long processes with old and with new settings run side by side, in seconds."""
WITHIN_S = 240.0
LOCAL = ""
REMOTE = f"s3://{BUCKET}/moved"


class Killer(threading.Thread):
    """Kills the API and the workers at random, and starts them again with the present settings."""

    def __init__(self, service: LocalService, ledger: Ledger, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._ledger = ledger
        self._chance = chance
        self._ended = threading.Event()
        self.lock = threading.Lock()
        """Held by who starts or ends a process."""

    def run(self) -> None:
        while not self._ended.wait(self._chance.expovariate(1 / PAUSE_S)):
            with self.lock:
                is_api = self._chance.random() < API_SHARE
                workers = self._service.worker_names
                others = [name for name in self._service.processes if name not in workers]
                name = self._chance.choice(others if is_api else workers)
                process = self._service.processes[name]
                if process.is_running:
                    process.stop(signal.SIGKILL)
                    self._ledger.count(f"kills of {name.partition('-')[0]}")
                self._service.start_ended()

    def end(self) -> None:
        self._ended.set()
        self.join()


@dataclass
class Mover:
    """Moves one service, and checks it."""

    service: LocalService
    killer: Killer
    ledger: Ledger
    chance: random.Random
    kills: int
    """How often the copy is killed in each move."""

    def move(self, source: str, target: str) -> None:
        """Move the service from one store to the other, as docs/stores.md tells its operator to."""
        self._settle(f"before the move to {target or 'the data directory'}")
        self._copy(self.kills // 2, target_url(self.service, target))
        self._restart({"store_url": target, "store_previous_url": target_url(self.service, source)})
        self._settle("between the two copies")
        self._copy(self.kills - self.kills // 2)
        self._restart({"store_previous_url": ""})
        self._wipe(source)
        self._settle("after the previous store was wiped")

    def _copy(self, kills: int, *target: str) -> None:
        """Run the copy until it succeeds. It is killed so many times before."""
        while kills:
            copy = self._start_copy(*target)
            time.sleep(self.chance.uniform(*COPY_LIVES_S))
            if copy.poll() is None:
                copy.kill()
                self.ledger.count("kills of the copy")
                kills -= 1
            copy.wait()
            if copy.returncode == 0:  # nothing was left to do; a killed one had more
                kills = max(0, kills - 1)
        began = time.monotonic()
        while True:
            copy = self._start_copy(*target)
            output, _ = copy.communicate(timeout=WITHIN_S)
            print(f"{time.monotonic():.0f} {output.strip()[-300:]}", file=sys.stderr, flush=True)
            if copy.returncode == 0:
                return
            assert copy.returncode == 3, f"the copy ended with {copy.returncode}: {output}"
            assert time.monotonic() - began < WITHIN_S, output

    def _start_copy(self, *target: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-m", "tunery", "store", "copy", *target]
        return subprocess.Popen(
            command,
            cwd=self.service.data_dir,
            env=self.service.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _restart(self, settings: Mapping[str, str]) -> None:
        """Give the processes their new settings one by one, in any order."""
        names = list(self.service.processes)
        self.chance.shuffle(names)
        for name in names:
            with self.killer.lock:
                process = self.service.processes[name]
                self.service.configure(settings if name == names[0] else {})
                if process.is_running:
                    process.stop(signal.SIGTERM)
                process.start()
            time.sleep(OLD_AND_NEW_S)

    def _settle(self, when: str) -> None:
        """Read back all that was acknowledged so far."""
        print(f"{time.monotonic():.0f} reading back {when}", file=sys.stderr, flush=True)
        files, jobs = Reader(self.service.base_url, self.ledger).check_all()
        print(f"{time.monotonic():.0f} {files} files, {jobs} jobs", file=sys.stderr, flush=True)

    def _wipe(self, url: str) -> None:
        """Delete every byte of the previous store."""
        if url == LOCAL:
            for path in (self.service.data_dir / "blobs").iterdir():
                if path.name != ".incoming":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        store = stored_at(self.service, url)
        for blob in list(store.list_all()):
            store.delete(blob.key)


def target_url(service: LocalService, url: str) -> str:
    """The address of a store in full, as the command and the previous URL need it."""
    return url or f"file://{service.data_dir}/blobs"


def stored_at(service: LocalService, url: str) -> BlobStore:
    return open_store(Settings(_env_file=None, data_dir=service.data_dir, store_url=url))


def move_there_and_back(*, kills: int, url: str, data_dir: Path, seed: int) -> dict[str, object]:
    """Move a service to S3 and back. Returns the report.

    The variables of AWS in the environment name an S3 server that keeps its objects on disk.

    Args:
        kills: how often the copy is killed, over both moves.
        url: the database.
    """
    write_catalogue(data_dir)
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    settings = {
        "database_url": url,
        "concurrency": str(WORKERS),
        "lease_s": str(LEASE_S),
        "stop_grace_s": "10",
        "poll_interval_s": "0.05",
        "install_default_model": "false",
        "store_url": LOCAL,
    }
    ledger, began = Ledger(), time.monotonic()
    service = LocalService(data_dir, settings, workers=WORKERS, worker_module="tests.chaos.worker")
    with service:
        clients = [
            Client(service.base_url, ledger, seed=chance.getrandbits(32)) for _ in range(CLIENTS)
        ]
        killer = Killer(service, ledger, chance)
        for client in clients:
            client.start()
        wait_until(lambda: len(ledger.files) >= WARM_UP_FILES or ledger.problems, within_s=WITHIN_S)
        killer.start()
        mover = Mover(service, killer, ledger, chance, kills // 2)
        mover.move(LOCAL, REMOTE)
        mover.move(REMOTE, LOCAL)
        for client in clients:
            client.end()
        for client in clients:
            client.join(WITHIN_S)
        killer.end()
        # The kernel ends a process with the thread that started it: see `tunery.logged_process`.
        for process in service.processes.values():
            process.kill()
        service.start_ended()
        reader = Reader(service.base_url, ledger)
        wait_until(
            lambda: all(reader.check_job(job_id) for job_id in ledger.jobs), within_s=WITHIN_S
        )
        files, jobs = reader.check_all()
    left = [blob.key for blob in stored_at(service, REMOTE).list_all()]
    if left:
        ledger.object_to(f"written to the store that was wiped: {left[:5]}")
    return {
        "seed": seed,
        "database": url.partition(":")[0],
        "seconds": round(time.monotonic() - began),
        **dict(sorted(ledger.counts.items())),
        "read at the end": {"files": files, "jobs": jobs},
        "lost or wrong": len(ledger.problems),
        "problems": ledger.problems[:20],
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60, help="kills of the copy, in both moves")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: random)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        server = StoreServer("localbucket", root / "s3").start()
        os.environ.update(server.environment())
        try:
            with new_database(options.database, root) as url:
                report = move_there_and_back(
                    kills=options.kills,
                    url=url,
                    data_dir=root / "data",
                    seed=seed,
                )
        finally:
            server.close()
    print(json.dumps(report, indent=2))
    return int(bool(report["problems"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
