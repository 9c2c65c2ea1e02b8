"""What API and workers ask of the database, with few jobs in it and with very many."""

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from app.core.access import DEFAULT_PROJECT_ID, LOCAL_CALLER
from app.core.base_models import Catalogue, load_catalogue
from app.core.clock import utc_now
from app.core.db import inspection
from app.core.db.migrate import upgrade
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import ExpiredFiles, FileRepository
from app.core.db.repositories.idempotency import (
    KEPT_FOR,
    OldIdempotencyRecords,
)
from app.core.db.repositories.job_views.curves import CurveRepository
from app.core.db.repositories.jobs import JobFilter, JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.projects.audit import AuditLog
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.queue import QueueRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import UnneededStates
from app.core.db.session import Database
from app.core.db.tables import File, Job
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from app.schemas.fine_tuning_jobs import JobCreate
from app.services import jobs as job_service
from app.services import new_jobs
from app.services.idempotency import IdempotentRequest, RequestOrigin
from benchmarks.support.databases import new_database
from benchmarks.support.many_jobs import EVENTS_EACH, LONG_STEPS, fill, job_id
from benchmarks.support.samples import write_catalogue

MINUTE = timedelta(minutes=1)
READS_ALL = "all: "
"""Begins the name of what reads everything, so that it takes the longer the more jobs there are."""


def build_file(expires_at: datetime | None = None) -> File:
    """The row of a dataset of one line; there is no such file."""
    file_id = new_id(IdPrefix.FILE)
    return File(
        id=file_id,
        project_id=DEFAULT_PROJECT_ID,
        purpose="fine-tune",
        filename="train.jsonl",
        bytes=1,
        sha256="0" * 64,
        crc32=0,
        blob_key=f"files/{file_id}",
        created_at=utc_now(),
        expires_at=expires_at,
        format="text",
        examples=1,
    )


class Round:
    """Everything once, on one database: a job is made, looked at, listed, claimed, kept, ended.

    SQLite computes in this thread, so the processor time of the thread is what counts: nothing else
    that the machine does is in it. PostgreSQL is another process, and the time is that of a clock.
    """

    def __init__(self, database: Database, catalogue: Catalogue, jobs: int, file: str) -> None:
        self._database = database
        self._catalogue = catalogue
        self._jobs = jobs
        self._file = file
        is_sqlite = database.engine.dialect.name == "sqlite"
        self._clock = time.thread_time if is_sqlite else time.perf_counter
        self.took_s: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        now = utc_now()
        long = job_id(self._jobs - 1)
        middle = job_id(self._jobs // 2)
        deep_event = f"ftevent-{self._jobs * EVENTS_EACH:026}"
        key = f"key {time.monotonic_ns()}"
        job = self._write("create", lambda session: self._create(session, key))
        self._write("create, again", lambda session: self._create(session, key))
        self._read("retrieve, last in queue", lambda session: self._look(session, job.id))
        first = self._jobs // 10 // 2 * 10
        self._read("retrieve, within queue", lambda session: self._look(session, job_id(first)))
        for name, after, which in (
            ("list, first page", None, JobFilter()),
            ("list, deep page", middle, JobFilter()),
            ("list, by a usual label", None, JobFilter(metadata={"team": "team-7"})),
            ("list, by a rare label", None, JobFilter(metadata={"team": "rare"})),
            ("list, by a usual status", None, JobFilter(frozenset({JobStatus.CANCELLED}))),
            ("list, by a rare status", None, JobFilter(frozenset({JobStatus.PAUSED}))),
            ("list, by a usual model", None, JobFilter(base_model="tiny")),
            ("list, by a rare model", None, JobFilter(base_model="rare")),
            (
                "list, by status and model",
                None,
                JobFilter(frozenset({JobStatus.PAUSED, JobStatus.QUEUED}), base_model="rare"),
            ),
            ("list, by a usual text", None, JobFilter(search="team-7")),
            (f"{READS_ALL}list, by a rare text", None, JobFilter(search="rare")),
        ):
            self._read(name, lambda session, a=after, w=which: self._list(session, a, w))
        self._read("list, page of 100", lambda session: self._list(session, None, JobFilter(), 100))
        self._list_others(long, middle, now)
        for name, after in (("events, newest", None), ("events, deep page", deep_event)):
            self._read(name, lambda session, a=after: EventRepository(
                session, DEFAULT_PROJECT_ID).list_page(long, after=a, limit=20))  # fmt: skip
        self._read(
            "loss log", lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_steps(long)
        )
        self._read("points of the loss log", lambda session: CurveRepository(
            session, DEFAULT_PROJECT_ID
        ).list_points(long, first=0, last=None, points=200))  # fmt: skip
        lease: Lease = self._write("claim", lambda session: LeaseRepository(session).claim(
            "worker-1", now=now, lease_for=MINUTE))  # fmt: skip
        self._write("renew", lambda session: LeaseRepository(session).renew(
            lease, until=now + MINUTE))  # fmt: skip
        self._chores(now)
        self._write("finish", lambda session: LeaseRepository(session).finish(
            lease, JobStatus.CANCELLED, now=now))  # fmt: skip
        self._write(
            "delete job",
            lambda session: job_service.delete_job(session, LOCAL_CALLER, lease.job_id, now=now),
        )
        self._write(
            "cancel", lambda session: job_service.cancel_job(session, LOCAL_CALLER, job.id, now=now)
        )
        self._write(
            "delete new job",
            lambda session: job_service.delete_job(session, LOCAL_CALLER, job.id, now=now),
        )
        return self.took_s

    def _list_others(self, long: str, middle: str, now: datetime) -> None:
        """The lists of everything but jobs, and what pages of the dashboard count."""
        for name, after, purpose in (
            ("files, first page", None, None),
            ("files, deep page", middle.replace("ftjob-", "file-"), None),
            ("files, by a usual purpose", None, "fine-tune-results"),
            ("files, by a rare purpose", None, "fine-tune"),
        ):
            self._read(name, lambda session, a=after, p=purpose: FileRepository(
                session, DEFAULT_PROJECT_ID).list_page(now=now, after=a, limit=20, order="desc",
                purpose=p, checkpoint=None))  # fmt: skip
        self._read("checkpoints", lambda session: CheckpointRepository(
            session, DEFAULT_PROJECT_ID).list_page(long, after=None, limit=10))  # fmt: skip
        self._read("models", lambda session: TunedModelRepository(
            session, DEFAULT_PROJECT_ID).list_all())  # fmt: skip
        for name, project in (("audit log", None), ("audit log, project", DEFAULT_PROJECT_ID)):
            self._read(name, lambda session, p=project: AuditLog(session).list_page(
                project_id=p, after=None, limit=20))  # fmt: skip
        self._read(f"{READS_ALL}jobs by status", inspection.count_jobs)
        self._read(f"{READS_ALL}use of a project", lambda session: UsageRepository(
            session, DEFAULT_PROJECT_ID).measure(now=now))  # fmt: skip

    def _chores(self, now: Any) -> None:
        """What each worker's janitor does every two seconds."""
        self._write("rescue expired", lambda session: RecoveryRepository(session).rescue_expired(
            now=now))  # fmt: skip
        self._write("rescue orphans", lambda session: RecoveryRepository(session).rescue_orphans(
            ["worker-0"], now=now))  # fmt: skip
        expired = build_file(expires_at=now - MINUTE)
        with self._database.writing() as session:
            FileRepository(session, DEFAULT_PROJECT_ID).add(expired)
        self._write("delete expired files", lambda session: ExpiredFiles(
            session).delete(now=now, limit=100))  # fmt: skip
        self._write("delete ended states", lambda session: UnneededStates(
            session).delete(held_since=now, limit=100))  # fmt: skip
        self._write("delete idempotency records", lambda session: OldIdempotencyRecords(
            session).delete_older(than=now - KEPT_FOR))  # fmt: skip

    def _create(self, session: Any, key: str) -> Job:
        body = JobCreate(model="tiny", training_file=self._file, seed=1, metadata={"team": "new"})
        origin = RequestOrigin(key=key, credentials_sha256="", retry_count=0, timeout=MINUTE)
        once = IdempotentRequest(
            session, LOCAL_CALLER, origin, "create", body.content(), now=utc_now()
        )
        earlier = once.find_job()
        if earlier is not None:
            return earlier
        job = new_jobs.create_job(
            session,
            LOCAL_CALLER,
            body,
            catalogue=self._catalogue,
            organization="tunery",
            now=utc_now(),
        )
        once.remember(job)
        return job

    def _look(self, session: Any, wanted: str) -> None:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        QueueRepository(session).position(jobs.get(wanted))

    def _list(self, session: Any, after: str | None, which: JobFilter, limit: int = 20) -> None:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        page = jobs.list_page(after=after, limit=limit, which=which)
        assert page.rows
        QueueRepository(session).positions(page.rows)

    def _write(self, name: str, act: Callable[[Any], Any]) -> Any:
        began = self._clock()
        with self._database.writing() as session:
            found = act(session)
        self.took_s[name] = self._clock() - began
        return found

    def _read(self, name: str, act: Callable[[Any], Any]) -> None:
        began = self._clock()
        with self._database.reading() as session:
            act(session)
        self.took_s[name] = self._clock() - began


def measure(kind: str, *, small: int, large: int, rounds: int) -> float:
    """Print medians of both databases, in turn. Returns the worst ratio."""
    with (
        tempfile.TemporaryDirectory() as first,
        tempfile.TemporaryDirectory() as second,
        new_database(kind, Path(first)) as small_url,
        new_database(kind, Path(second)) as large_url,
    ):
        write_catalogue(Path(first))
        catalogue = load_catalogue(Path(first))
        databases: list[tuple[int, Database, str]] = []
        for jobs, url in ((small, small_url), (large, large_url)):
            database = Database(url)
            upgrade(database)
            began = time.perf_counter()
            fill(database, jobs)
            print(f"{kind}: {jobs:,} jobs, {jobs * EVENTS_EACH + LONG_STEPS:,} events "
                  f"filled in {time.perf_counter() - began:.0f} s")  # fmt: skip
            file = build_file()
            file_id = file.id
            with database.writing() as session:
                FileRepository(session, DEFAULT_PROJECT_ID).add(file)
            databases.append((jobs, database, file_id))
        took: dict[str, tuple[list[float], list[float]]] = {}
        for number in range(rounds + 1):
            for size, (jobs, database, file_id) in enumerate(databases):
                for name, seconds in Round(database, catalogue, jobs, file_id).run().items():
                    if number:  # the first one fills caches
                        took.setdefault(name, ([], []))[size].append(seconds)
        for _, database, _ in databases:
            database.dispose()
    print(f"{kind}: medians of {rounds} in turn, milliseconds, and the ratio")
    ratios = []
    for name, values in took.items():
        few, many = (1000 * statistics.median(each) for each in values)
        if not name.startswith(READS_ALL):
            ratios.append(many / few)
        print(f"  {name:27} {few:8.2f} {many:8.2f}   {many / few:.2f}")
    print(f"  worst ratio {max(ratios):.2f}")
    return max(ratios)
