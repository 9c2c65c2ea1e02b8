"""Processes that write through the service's own code, and say what they were told is done.

Each is forked, so it needs no second to import anything, and runs until it is killed: a writer
whose disk has gone fails, and one that fails before that is a fault of this program.
"""

import hashlib
import json
import os
import random
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import event

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db import migrate
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from app.core.machine import durable
from app.core.manifest import atomic_directory
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_file,
    add_job,
    build_checkpoint,
    build_job,
    build_job_spec,
    build_lease,
)
from worker.job_directory import JobDirectory
from worker.stored_file import as_file

Sabotage = Literal[
    "none", "synchronous=NORMAL", "no sync of files", "no sync of directories", "no sync above"
]
Acknowledge = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Writer:
    pid: int
    acknowledgements: int
    """Descriptor of a pipe: a JSON array a line."""

    def is_alive(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start_writer(root: Path, seed: int, sabotage: Sabotage = "none") -> Writer:
    """One that starts the service as it would, and then does not stop."""
    reader, pipe = os.pipe()
    pid = os.fork()
    if pid:
        os.close(pipe)
        return Writer(pid, reader)

    def acknowledge(*what: Any) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    try:
        with Service(root, sabotage) as service:
            write_all_kinds(service, random.Random(seed), acknowledge)  # noqa: S311 - chance, not secrecy
    except BaseException:
        acknowledge("died", traceback.format_exc()[-3000:])
    finally:
        os._exit(1)


class Service:
    """What API and worker make of a data directory when they start."""

    def __init__(self, root: Path, sabotage: Sabotage = "none") -> None:
        _weaken(sabotage)
        self.data_dir = root / "data"
        self.store = LocalBlobStore(self.data_dir / "blobs")
        self.database = Database(f"sqlite:///{self.data_dir / 'tunery.db'}")
        if sabotage == "synchronous=NORMAL":
            event.listen(self.database.engine, "connect", _set_normal)

    def __enter__(self) -> "Service":
        migrate.upgrade(self.database)
        return self

    def __exit__(self, *_: object) -> None:
        self.database.dispose()


def _set_normal(connection: Any, _record: Any) -> None:
    connection.cursor().execute("PRAGMA synchronous = NORMAL")


def _weaken(sabotage: Sabotage) -> None:
    """Break a promise in this process alone."""
    sync = durable.sync
    if sabotage == "no sync of files":
        durable.sync = lambda path: sync(path) if path.is_dir() else None
    if sabotage == "no sync of directories":
        durable.sync = lambda path: None if path.is_dir() else sync(path)
    if sabotage == "no sync above":
        durable.make_directory = lambda path, **_: path.mkdir(parents=True, exist_ok=True)


_NEW = JobStatus.VALIDATING_FILES


def write_all_kinds(service: Service, rng: random.Random, acknowledge: Acknowledge) -> None:
    """Jobs mostly, one or several in a transaction; uploads; checkpoints."""
    for number in count():
        chance = rng.random()
        if chance < 0.6:
            acknowledge("jobs", [add_job(service.database, status=_NEW).id])
        elif chance < 0.85:
            _submit_together(service, f"{os.getpid()}.{number}", rng.randint(2, 8), acknowledge)
        elif chance < 0.97:
            file = add_file(service.database, service.store, _content(rng))
            acknowledge("file", file.blob_key, file.sha256)
        else:
            _publish_checkpoint(service, rng, acknowledge)


def _submit_together(service: Service, tag: str, size: int, acknowledge: Acknowledge) -> None:
    """Several jobs in one transaction. Their suffix says which, and how many they are."""
    jobs = [build_job(suffix=f"{tag}/{size}", status=_NEW) for _ in range(size)]
    with service.database.writing() as session:
        repository = JobRepository(session, DEFAULT_PROJECT_ID)
        for job in jobs:
            repository.add(job)
    acknowledge("jobs", [job.id for job in jobs])


def _publish_checkpoint(service: Service, rng: random.Random, acknowledge: Acknowledge) -> None:
    """Saved as the child does it, then stored and recorded as the worker does."""
    job = add_job(service.database, status=_NEW)
    acknowledge("jobs", [job.id])
    lease = build_lease(job)
    job_directory = JobDirectory(service.data_dir / "work", lease)
    target = job_directory.directory / "out/step-1"
    with atomic_directory(target, 1, build_job_spec(lease)) as directory:
        for name in ("adapter_config.json", "adapter_model.safetensors", "state.safetensors"):
            (directory / name).write_bytes(_content(rng))
    acknowledge("checkpoint", str(target.relative_to(service.data_dir)))
    stored = job_directory.store_directory(service.store, "out/step-1", step=1).files
    acknowledge("stored", [[file.blob_key, file.sha256] for file in stored])
    checkpoint = build_checkpoint(job)
    checkpoint.files = [as_file(file, lease, now=NOW) for file in stored]
    with service.database.writing() as session:
        CheckpointRepository(session, DEFAULT_PROJECT_ID).add(checkpoint)
    acknowledge("row", checkpoint.id)


def _content(rng: random.Random) -> bytes:
    """Bytes of any size that begin with the sha256 of the rest: so whoever finds them can tell."""
    body = rng.randbytes(rng.choice((0, 100, 5_000, 40_000)))
    return hashlib.sha256(body).hexdigest().encode() + body


def is_whole(content: bytes) -> bool:
    return hashlib.sha256(content[64:]).hexdigest().encode() == content[:64]
