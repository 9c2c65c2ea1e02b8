"""A service whose jobs run in a Ray cluster: PostgreSQL, an S3 server, API, dispatchers, nodes."""

import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil

from app.core.db.session import Database
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore
from benchmarks.support.databases import new_database
from tests.cluster.ray_cluster import NODE_MEMORY, RayCluster
from tests.stores.servers import BUCKET, StoreServer
from tests.waiting import wait_until
from tunery.local_service import LocalService
from worker.dispatch.connection import RayConnection

NODES = ("node-1", "node-2")
LEASE_S = 30.0
"""Long enough for a machine that is busy with other tests."""

FREE_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Installation:
    """All that runs."""

    root: Path
    service: LocalService
    cluster: RayCluster
    database: Database
    store: BlobStore

    def find_leaks(self) -> list[str]:
        """What is left of attempts when no job runs: processes, and places taken in Ray."""
        connection = RayConnection(self.cluster.address, "tests.cluster.node")

        def taken() -> list[str]:
            nodes = connection.ask("nodes")
            return [
                f"{node['address']}: {node['cpus']} CPU, {node['memory_bytes']} bytes free"
                for node in nodes
                if (node["cpus"], node["memory_bytes"]) != (1, NODE_MEMORY)
            ] + ["a node is missing"] * (len(nodes) != len(NODES))

        def left() -> list[str]:
            orphans = [f"orphan: {one}" for one in self.find_attempts()]
            return orphans + [f"leaked: {one}" for one in taken()]

        try:  # Ray has a place back before the process that had it is quite gone
            wait_until(lambda: not left(), within_s=FREE_WITHIN_S)
        except AssertionError:
            return left()
        finally:
            connection.close()
        return []

    def find_attempts(self) -> list[str]:
        """Command lines of actors of this cluster, and of training processes on its nodes."""
        actors = [
            process for name in NODES for process in self.cluster.find(name, "ray::AttemptActor")
        ]
        trainers = [
            process
            for process in psutil.process_iter()
            if f"{self.root}/node-" in _command_of(process) and "/work/" in _command_of(process)
        ]
        return [_command_of(process) for process in (*actors, *trainers)]


@contextmanager
def installed(
    root: Path,
    *,
    prepare: Callable[[Path], None],
    dispatchers: int = 2,
    worker_module: str = "tests.cluster.dispatcher",
    store_name: str = "localbucket",
    settings: Mapping[str, str] | None = None,
) -> Generator[Installation]:
    """Start all of it in a directory. Afterwards nothing of it runs.

    Args:
        prepare: gives a data directory its base models.
    """
    with ExitStack() as stack:
        server = StoreServer(store_name, _made(root / "store")).start()
        stack.callback(server.close)
        url = stack.enter_context(new_database("postgresql", root))
        keys = SigningKeys(_made(root / "api") / "signing")
        keys.ensure()
        common = {
            "database_url": url,
            "store_url": f"s3://{BUCKET}/chaos",
            "training_threads": "1",
            "lease_s": str(LEASE_S),
            "install_default_model": "false",
            **(settings or {}),
        }
        nodes: dict[str, dict[str, str]] = {}
        for name in ("api", *NODES):
            prepare(_made(root / name))
            if name != "api":
                shutil.copytree(root / "api" / "signing", root / name / "signing")
                own = common | {"data_dir": str(root / name), "machine": name}
                variables = {f"TUNERY_{key.upper()}": text for key, text in own.items()}
                nodes[name] = variables | server.environment()
        cluster = stack.enter_context(RayCluster(nodes, log_dir=root))
        dispatching = {"launcher": "ray", "ray_address": cluster.address, "poll_interval_s": "0.1"}
        stack.enter_context(patch.dict(os.environ, server.environment()))  # for the service
        service = stack.enter_context(
            LocalService(
                root / "api",
                common | dispatching,
                workers=dispatchers,
                worker_module=worker_module,
            )
        )
        database = Database(url)
        stack.callback(database.dispose)
        store = server.store(_made(root / "check"), prefix="chaos")
        yield Installation(root, service, cluster, database, store)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
