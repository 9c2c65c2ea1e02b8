"""What API and workers ask of the database, with few jobs in it and with very many."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from app.core.abilities.needs import needs_of
from app.core.access import DEFAULT_PROJECT_ID, LOCAL_CALLER
from app.core.base_models import Catalogue, load_catalogue
from app.core.clock import utc_now
from app.core.db.migrate import upgrade
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import ExpiredFiles, FileRepository
from app.core.db.repositories.idempotency import (
    KEPT_FOR,
    OldIdempotencyRecords,
)
from app.core.db.repositories.job_views.curves import CurveRepository
from app.core.db.repositories.jobs import JobFilter, JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.queue import QueueRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import UnneededStates
from app.core.db.session import Database
from app.core.db.tables import File, Job
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig
from app.schemas.fine_tuning_jobs import JobCreate
from app.services import jobs as job_service
from app.services import new_jobs
from app.services.idempotency import IdempotentRequest, RequestOrigin
from benchmarks.support.databases import new_database
from benchmarks.support.samples import write_catalogue

MINUTE = timedelta(minutes=1)
EVENTS_EACH = 10
QUEUED_OF_TEN = 1
"""Of ten jobs; the rest has ended."""
RARE = 3
"""Jobs with the rare label: the oldest, so that a list by it has all the others before them."""
LONG_STEPS = 1000
"""Of the loss log and of the events of one job, the same in every database."""


_Rows = Iterator[tuple[Any, ...]]


def job_id(number: int) -> str:
    """Sorts before every id that is made now."""
    return f"ftjob-{number:026}"


def build_rows(jobs: int) -> dict[str, tuple[str, Callable[[], _Rows]]]:
    """Columns and rows of every table, in the order in which they can be written."""
    config = json.dumps(TrainingConfig(seed=7).model_dump(mode="json"))
    needs = needs_of("tiny")
    at, project = "2026-01-02 03:04:05.000000+00:00", DEFAULT_PROJECT_ID
    metrics = json.dumps({"step": 1, "epoch": 0.1, "train_loss": 1.0, "learning_rate": 1e-4})

    def job_rows() -> _Rows:
        for number in range(jobs):
            is_queued = number % 10 < QUEUED_OF_TEN
            status, ended = ("queued", None) if is_queued else ("cancelled", at)
            result = None if is_queued else f"file-{number:026}"
            events = EVENTS_EACH + (LONG_STEPS if number == jobs - 1 else 0)
            yield (job_id(number), project, status, at, ended, 0, "tiny", f"file-in-{number % 99}",
                   config, f"ft:tiny:tunery::{number}", 0, 0, 0, 0, result, at, events,
                   needs)  # fmt: skip

    def file_rows() -> _Rows:
        for number in range(jobs):
            key = f"file-{number:026}"
            yield (key, project, "fine-tune-results", "a.csv", 1, "0", 0, f"files/{key}", at, False,
                   job_id(number), None)  # fmt: skip

    def submission_rows() -> _Rows:
        now = utc_now().isoformat(" ")
        for number in range(jobs):
            yield job_id(number), project, "create", f"key-{number}", f"{number:064}", now

    def label_rows() -> _Rows:
        for number in range(jobs):
            yield job_id(number), "team", "rare" if number < RARE else f"team-{number % 100}"

    def event_rows() -> _Rows:
        for number in range(jobs * EVENTS_EACH + LONG_STEPS):
            owner = min(number // EVENTS_EACH, jobs - 1)  # the last one has many more
            yield (f"ftevent-{number:026}", project, job_id(owner), at, "info", "metrics",
                   f"Step {number}: training loss=1.00", metrics,
                   number - owner * EVENTS_EACH + 1)  # fmt: skip

    def step_rows() -> _Rows:
        for step in range(1, LONG_STEPS + 1):
            loss = {"tokens_seen": step, "elapsed_s": 1.0, "grad_norm": 1.0}
            accuracy = {"train_mean_token_accuracy": 0.5, "step": step}
            row = json.loads(metrics) | loss | accuracy
            yield job_id(jobs - 1), step, 1, json.dumps(row), row["train_loss"]

    job_columns = (
        "id, project_id, status, created_at, finished_at, priority, base_model, training_file_id, "
        "config, fine_tuned_model, attempt, trained_steps, crashes, interruptions, result_file_id, "
        "updated_at, event_count, needs"
    )
    file_columns = (
        "id, project_id, purpose, filename, bytes, sha256, crc32, blob_key, created_at, "
        "uses_tools, job_id, expires_at"
    )
    submission_columns = "job_id, project_id, route, key, fingerprint, created_at"
    event_columns = "id, project_id, job_id, created_at, level, type, message, data, number"
    return {
        "jobs": (job_columns, job_rows),
        "files": (file_columns, file_rows),
        "submissions": (submission_columns, submission_rows),
        "job_metadata": ("job_id, key, value", label_rows),
        "events": (event_columns, event_rows),
        "steps": ("job_id, step, attempt, metrics, train_loss", step_rows),
    }


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


def fill(database: Database, jobs: int) -> None:
    """Past SQLAlchemy, which would take hours, and then as a server would do by itself at night."""
    connection = database.engine.raw_connection()
    is_sqlite = database.engine.dialect.name == "sqlite"
    cursor = connection.cursor()
    if is_sqlite:
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.execute("BEGIN")
    for table, (columns, rows) in build_rows(jobs).items():
        if is_sqlite:
            marks = ", ".join("?" * len(columns.split(",")))
            cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows())  # noqa: S608
            continue
        with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            for row in rows():
                copy.write_row(row)
    if is_sqlite:
        cursor.execute("COMMIT")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.commit()
    cursor.close()
    connection.close()
    if not is_sqlite:
        with database.engine.connect() as session:
            raw = session.execution_options(isolation_level="AUTOCOMMIT")
            raw.exec_driver_sql("VACUUM ANALYZE")


class Round:
    """Everything once, on one database: a job is made, looked at, listed, claimed, kept, ended."""

    def __init__(self, database: Database, catalogue: Catalogue, jobs: int, file: str) -> None:
        self._database = database
        self._catalogue = catalogue
        self._jobs = jobs
        self._file = file
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
            ("list, by a usual text", None, JobFilter(search="team-7")),
        ):
            self._read(name, lambda session, a=after, w=which: self._list(session, a, w))
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

    def _list(self, session: Any, after: str | None, which: JobFilter) -> None:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        page = jobs.list_page(after=after, limit=20, which=which)
        assert page.rows
        QueueRepository(session).positions(page.rows)

    def _write(self, name: str, act: Callable[[Any], Any]) -> Any:
        began = time.perf_counter()
        with self._database.writing() as session:
            found = act(session)
        self.took_s[name] = time.perf_counter() - began
        return found

    def _read(self, name: str, act: Callable[[Any], Any]) -> None:
        began = time.perf_counter()
        with self._database.reading() as session:
            act(session)
        self.took_s[name] = time.perf_counter() - began


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
        ratios.append(many / few)
        print(f"  {name:24} {few:8.2f} {many:8.2f}   {many / few:.2f}")
    print(f"  worst ratio {max(ratios):.2f}")
    return max(ratios)
