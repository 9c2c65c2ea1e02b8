"""Measures the processes of a service and its data directory, without asking the service."""

import re
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from sqlalchemy import func, select

from app.core.db.project_tables import IdempotencyRecord
from app.core.db.session import Database
from app.core.db.tables import (
    Checkpoint,
    Event,
    File,
    Job,
    JobMetadata,
    SavedState,
    StepRow,
    TunedModel,
    UploadPart,
)
from app.core.db.webhook_tables import WebhookDelivery, WebhookEndpoint
from app.core.db.worker_tables import Attempt
from app.core.storage.local import LocalBlobStore
from benchmarks.memory import find_descendants
from tests.soak.trends import DESCRIPTORS, LOG, MEMORY, THREADS, Metric, Point, Sample
from tunery.local_service import LocalService

INTERVAL_S = 2.0
"""Time between two measurements, in seconds."""

ZOMBIE_S = 10.0
"""How long a process that has ended may wait for its parent to notice, in seconds."""

_MIB = 1024 * 1024
_OF_JOBS_AND_FILES = (
    *(Attempt, Checkpoint, Event, File, IdempotencyRecord, Job, JobMetadata, SavedState),
    *(StepRow, TunedModel, UploadPart, WebhookEndpoint),
)
"""Tables that the deletion of every job and file leaves as they were. Other tables keep rows for
days by design: audit events, ended uploads, sent webhooks and revoked keys."""


class Meter:
    """Measures one service."""

    def __init__(self, service: LocalService, database: Database) -> None:
        self._service = service
        self._database = database
        self._store = LocalBlobStore(service.data_dir / "blobs")
        self._work_dir = service.data_dir / "work"
        self._zombies_since_s: dict[int, float] = {}
        self.series: dict[Metric, list[Point]] = defaultdict(list)
        """Every value of each metric, with its time in seconds since `watch` began."""
        self.problems: list[str] = []

    def watch(self, *, seconds: float) -> None:
        """Measure regularly, into `series`, and make sure that all processes run.

        Raises:
            ServiceError: a process has ended.
        """
        began_s = time.monotonic()
        while (now_s := time.monotonic() - began_s) < seconds:
            self._service.check()
            for metric, value in self.measure_load().items():
                self.series[metric].append((now_s, value))
            time.sleep(min(INTERVAL_S, seconds - now_s))

    def measure_load(self) -> Sample:
        """What the processes and the write-ahead log take at this moment."""
        found: dict[Metric, float] = {}
        for name, pid in self._find_processes().items():
            found |= {(name, kind): value for kind, value in _measure_process(pid).items()}
        log_bytes = self._database.backend.log_bytes()
        if log_bytes is not None:
            found["database", LOG] = log_bytes / _MIB
        self._check_zombies()
        return found

    def measure_rest(self) -> Sample:
        """What the processes have open and running, and what is stored."""
        processes = {
            metric: value
            for metric, value in self.measure_load().items()
            if metric[1] in (DESCRIPTORS, THREADS)
        }
        return {**processes, ("all", "processes"): len(self._find_all()), **self.measure_data()}

    def measure_data(self) -> Sample:
        """What is stored of jobs and files, and what is still to be sent."""
        is_pending = WebhookDelivery.status == "pending"
        with self._database.reading() as session:
            counts = [select(func.count()).select_from(table) for table in _OF_JOBS_AND_FILES]
            rows = sum(session.scalars(count).one() for count in counts)
            unsent = select(func.count()).select_from(WebhookDelivery).where(is_pending)
            webhooks = session.scalars(unsent).one()
        return {
            ("database", "rows"): rows,
            ("database", "unsent webhooks"): webhooks,
            ("data directory", "blobs"): sum(1 for _ in self._store.list_all()),
            ("data directory", "scratch files"): sum(1 for _ in self._store.list_scratch()),
            ("data directory", "entries of work"): len(list(self._work_dir.glob("*"))),
        }

    def _find_processes(self) -> dict[str, int]:
        found = {name: process.pid for name, process in self._service.processes.items()}
        for name in self._service.worker_names:
            for pid in find_descendants(found[name]):  # the fork server before its children
                if "worker.launch.fork_server" in _read(pid, "cmdline"):
                    found[f"fork server of {name}"] = pid
                    break
        return found

    def _find_all(self) -> list[int]:
        own = [process.pid for process in self._service.processes.values()]
        return own + [pid for process in own for pid in find_descendants(process)]

    def _check_zombies(self) -> None:
        """Report processes that have ended, and whose parent does not notice."""
        now_s = time.monotonic()
        zombies = {pid for pid in self._find_all() if ") Z " in _read(pid, "stat")}
        since_s = {pid: self._zombies_since_s.get(pid, now_s) for pid in zombies}
        self._zombies_since_s = since_s
        for pid, seen_s in since_s.items():
            if now_s - seen_s > ZOMBIE_S:
                self.problems.append(f"process {pid} has been a zombie for {ZOMBIE_S:.0f} s")


def memory_of(pid: int) -> float:
    """Memory that belongs to a process and not to a file, in MiB."""
    return _measure_process(pid)[MEMORY]


def _measure_process(pid: int) -> dict[str, float]:
    """Memory that belongs to a process and not to a file, and how much it has open and running."""
    status = dict(re.findall(r"^(RssAnon|Threads):\s+(\d+)", _read(pid, "status"), re.MULTILINE))
    if len(status) < 2:
        return {}  # it has ended
    found = {MEMORY: int(status["RssAnon"]) / 1024, THREADS: float(status["Threads"])}
    with suppress(OSError):  # a process that refuses tracing shows its descriptors to root alone
        found[DESCRIPTORS] = float(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    return found


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")
    except OSError:
        return ""  # it has ended
