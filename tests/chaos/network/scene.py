"""Three machines with a worker each, one PostgreSQL, one S3, and the API here."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self
from unittest import mock

from sqlalchemy import make_url

from app.core.db.session import Database
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore
from benchmarks.support.databases import new_database
from tests.builders import write_catalogue
from tests.chaos.network.link import Relays
from tests.chaos.network.machines import Machine, Server
from tests.children import find_children
from tests.stores.servers import BUCKET, StoreServer, environment_of
from tunery.local_service import LocalService

if TYPE_CHECKING:
    from tunery.logged_process import LoggedProcess

MACHINES = 3
LEASE_S = 5.0
GRACE_S = 10.0
PREFIX = "tunery"
"""What the keys of this service in the bucket begin with."""


class Machines:
    """The machines and the API: what `Attacks` attacks."""

    def __init__(self, service: LocalService, machines: Mapping[str, Machine]) -> None:
        self.worker_names: Sequence[str] = list(machines)
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


class Scene:
    """A database, a store, an API and the machines with their workers. A context manager.

    Args:
        store: the S3 server, one of `tests.stores.servers.NAMES`.
        mutation: the safeguard that `tests.chaos.worker` turns off.
    """

    def __init__(self, directory: Path, *, store: str, mutation: str) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._server = StoreServer(store, directory / "store")
        self._common = {
            "store_url": f"s3://{BUCKET}/{PREFIX}",
            "lease_s": str(LEASE_S),
            "stop_grace_s": str(GRACE_S),
            "poll_interval_s": "0.05",
            "install_default_model": "false",
            "test_mutation": mutation,
        }
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._url = stack.enter_context(new_database("postgresql", self._directory))
            self._server.start()
            stack.callback(self._server.close)
            stack.enter_context(mock.patch.dict(os.environ, self._server.environment()))
            self.service = self._make_service()
            stack.enter_context(self.service)
            relays = stack.enter_context(Relays())
            for number in range(1, MACHINES + 1):
                self._add_machine(stack, f"worker-{number}", relays)
            self.database = Database(self._url)
            stack.callback(self.database.dispose)
            stack.callback(self.end_workers)
            self.fleet = Machines(self.service, self.machines)
            self.fleet.start_ended()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def blobs(self) -> BlobStore:
        """The store, without a link in between."""
        return self._server.store(self._directory / "scratch", prefix=PREFIX)

    @property
    def settings(self) -> Settings:
        return Settings(data_dir=self._directory / "api", database_url=self._url)

    def end_workers(self) -> None:
        for machine in self.machines.values():
            if machine.process.is_running:
                machine.process.stop(within_s=GRACE_S + 60)

    def _make_service(self) -> LocalService:
        data_dir = self._directory / "api"
        write_catalogue(data_dir)
        SigningKeys(data_dir / "signing").ensure()
        return LocalService(data_dir, {**self._common, "database_url": self._url}, workers=0)

    def _add_machine(self, stack: ExitStack, name: str, relays: Relays) -> None:
        targets: dict[Server, tuple[str, int] | Path] = {
            "database": Path(str(make_url(self._url).query["host"])) / ".s.PGSQL.5432",
            "store": ("127.0.0.1", self._server.port),
        }
        machine = stack.enter_context(Machine(name, self._directory / name, relays, targets))
        shutil.copytree(self.service.data_dir / "signing", machine.data_dir / "signing")
        locks = self._directory / "locks"
        locks.mkdir(exist_ok=True)
        machine.prepare(
            {**self._common, "database_url": machine.database_url(self._url)},
            {**environment_of(machine.store_endpoint()), "TUNERY_TEST_LOCKS": str(locks)},
        )
        self.machines[name] = machine
