"""No question that is asked all the time reads a whole table: see benchmarks/api.py for times."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, event

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db import inspection
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import ExpiredFiles, FileRepository
from app.core.db.repositories.idempotency import IdempotencyRepository, OldIdempotencyRecords
from app.core.db.repositories.job_views.curves import CurveRepository
from app.core.db.repositories.job_views.waiting import WaitingReasons
from app.core.db.repositories.jobs import JobFilter, JobRepository
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.projects.audit import AuditLog
from app.core.db.repositories.projects.erasure import ErasureRepository
from app.core.db.repositories.projects.retention import RetentionRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.queue import QueueRepository, Turn, Turns
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import UnneededStates
from app.core.db.repositories.sweeps.shared_checks import EndedChecks
from app.core.db.repositories.tasks.leases import TaskQueue
from app.core.db.repositories.tasks.requests import ExpiredTasks, TaskRepository
from app.core.db.repositories.uploads import EndedUploads, UploadRepository
from app.core.db.repositories.webhooks import WebhookQueue
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database, Session
from app.core.job.status import JobStatus
from tests.builders import (
    EVERY_CHECK,
    MINUTE,
    NOW,
    add_job,
    build_checkpoint,
    build_file,
    build_job,
    build_step,
    build_upload,
    claim,
)

if TYPE_CHECKING:
    from benchmarks.support.postgres import PostgresServer


def _list_files(session: Session, **filters: Any) -> object:
    options = {"after": "a", "purpose": None, "checkpoint": None} | filters
    return FileRepository(session, DEFAULT_PROJECT_ID).list_page(
        now=NOW, limit=20, order="desc", **options
    )


_ASKED: dict[str, Callable[[Session], object]] = {
    "get": lambda session: QueueRepository(session).position(build_job(priority=0)),
    "list": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_page(
        after="a", limit=20
    ),
    "search": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_page(
        after="a",
        limit=20,
        which=JobFilter(frozenset({JobStatus.RUNNING}), base_model="tiny", search="a"),
    ),
    "list by status": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_page(
        after="a", limit=20, which=JobFilter(frozenset({JobStatus.RUNNING, JobStatus.PAUSED}))
    ),
    "list by base model": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_page(
        after="a", limit=20, which=JobFilter(base_model="tiny")
    ),
    "delete a job": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).delete(
        _added_job(session)
    ),
    "continuing jobs": lambda session: CheckpointRepository(
        session, DEFAULT_PROJECT_ID
    ).lock_to_delete("a"),
    "list by labels": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_page(
        after="a", limit=20, which=JobFilter(metadata={"a": "b", "c": "d"})
    ),
    "queue": lambda session: QueueRepository(session).positions([build_job()]),
    "why jobs wait": lambda session: WaitingReasons(session).find(
        [build_job(), build_job(status=JobStatus.VALIDATING_FILES)], defaultdict(int)
    ),
    "events": lambda session: EventRepository(session, DEFAULT_PROJECT_ID).list_page(
        "a", after="a", limit=20
    ),
    "loss log": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_steps("a"),
    "part of a loss log": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_steps(
        "a", first=9, limit=9
    ),
    "points of a loss log": lambda session: CurveRepository(
        session, DEFAULT_PROJECT_ID
    ).list_points(_added_log(session), first=1, last=None, points=5),
    "attempts": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).list_attempts(
        "a", limit=20
    ),
    "checkpoints": lambda session: CheckpointRepository(session, DEFAULT_PROJECT_ID).list_page(
        "a", after="a", limit=20
    ),
    "checkpoint by name": lambda session: CheckpointRepository(
        session, DEFAULT_PROJECT_ID
    ).find_of_model("a", 1),
    "key": lambda session: IdempotencyRepository(session, DEFAULT_PROJECT_ID).find_by_key(
        "create", "a"
    ),
    "retry": lambda session: IdempotencyRepository(session, DEFAULT_PROJECT_ID).find_recent(
        "create", "a", since=NOW
    ),
    "claim": lambda session: LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE),
    "is a check due": lambda session: DataCheckRepository(session).is_any(EVERY_CHECK, now=NOW),
    "claim a check": lambda session: DataCheckRepository(session).claim(
        "worker-1", EVERY_CHECK, now=NOW, lease_for=MINUTE
    ),
    "ended checks": lambda session: EndedChecks(session).forget_tokens(limit=20),
    "checks of dead workers": lambda session: DataCheckRepository(session).release_orphans(["a"]),
    "report on data": lambda session: JobRepository(session, DEFAULT_PROJECT_ID).find_check("a"),
    "is a task due": lambda session: TaskQueue(session).is_any(now=NOW),
    "claim a task": lambda session: TaskQueue(session).claim("worker-1", now=NOW, lease_for=MINUTE),
    "tasks of dead workers": lambda session: TaskQueue(session).release_orphans(["a"]),
    "expired tasks": lambda session: ExpiredTasks(session).delete(now=NOW, limit=20),
    "find a task": lambda session: TaskRepository(session, DEFAULT_PROJECT_ID).find("a", "b", "c"),
    "tasks of a job": lambda session: TaskRepository(session, DEFAULT_PROJECT_ID).list_of_job(
        "a", "export"
    ),
    "turns": lambda session: Turns(session).is_any(now=NOW),
    "use": lambda session: UsageRepository(session, DEFAULT_PROJECT_ID).measure(now=NOW),
    "count what is erased": lambda session: ErasureRepository(
        session, DEFAULT_PROJECT_ID
    ).count_rows(),
    "erase jobs": lambda session: ErasureRepository(session, DEFAULT_PROJECT_ID).delete_jobs(
        limit=20
    ),
    "erase the rest": lambda session: ErasureRepository(session, "proj-none").delete_rest(),
    "events that are kept no longer": lambda session: RetentionRepository(
        session, DEFAULT_PROJECT_ID
    ).find_events(NOW, limit=20),
    "jobs that are kept no longer": lambda session: RetentionRepository(
        session, DEFAULT_PROJECT_ID
    ).find_jobs(NOW, limit=20),
    "files that are kept no longer": lambda session: RetentionRepository(
        session, DEFAULT_PROJECT_ID
    ).find_files(NOW, now=NOW, limit=20),
    "delete events": lambda session: RetentionRepository(session, DEFAULT_PROJECT_ID).delete_events(
        ["a", "b"]
    ),
    "audit events that are kept no longer": lambda session: AuditLog(session).list_older(
        than=NOW, limit=20
    ),
    "delete audit events": lambda session: AuditLog(session).delete(["a", "b"]),
    "may take a turn": lambda session: Turns(session).may_take(
        Turn(DEFAULT_PROJECT_ID, is_limited=True)
    ),
    "list models": lambda session: TunedModelRepository(session, DEFAULT_PROJECT_ID).list_all(),
    "count use": lambda session: UsageRepository(session, DEFAULT_PROJECT_ID).add(
        processor_s=1.0, now=NOW
    ),
    "rescue expired": lambda session: RecoveryRepository(session).rescue_expired(now=NOW),
    "rescue orphans": lambda session: RecoveryRepository(session).rescue_orphans(["a"], now=NOW),
    "find dead workers": lambda session: WorkerRepository(session).find_dead("a", lambda _: True),
    "list workers": lambda session: WorkerRepository(session).list_all(),
    "queues of the projects": inspection.count_unfinished_jobs,
    "count workers": lambda session: WorkerRepository(session).count_alive(now=NOW),
    "find silent workers": lambda session: WorkerRepository(session).is_any_falling_silent(now=NOW),
    "forget workers": lambda session: WorkerRepository(session).remove(["a"]),
    "files": _list_files,
    "uploads": lambda session: _list_files(session, purpose="fine-tune"),
    "made files": lambda session: _list_files(session, purpose="fine-tune-results"),
    "files of a checkpoint": lambda session: _list_files(session, checkpoint="a"),
    "weights": lambda session: FileRepository(session, DEFAULT_PROJECT_ID).find_weights("a"),
    "jobs that use a file": lambda session: FileRepository(
        session, DEFAULT_PROJECT_ID
    ).find_unfinished_job_using("a"),
    "expired files": lambda session: ExpiredFiles(session).list_all(now=NOW, limit=20),
    "delete file": lambda session: FileRepository(session, DEFAULT_PROJECT_ID).delete(
        _added_file(session)
    ),
    "ended states": lambda session: UnneededStates(session).delete(held_since=NOW, limit=20),
    "expired uploads": lambda session: EndedUploads(session).expire(now=NOW, limit=20),
    "old uploads": lambda session: EndedUploads(session).delete_older(than=NOW),
    "end an upload": lambda session: UploadRepository(session, DEFAULT_PROJECT_ID).end(
        _added_upload(session), "cancelled"
    ),
    "part": lambda session: UploadRepository(session, DEFAULT_PROJECT_ID).find_part("a", "b"),
    "size of parts": lambda session: UploadRepository(session, DEFAULT_PROJECT_ID).measure_parts(
        "a"
    ),
    "parts of an upload": lambda session: UploadRepository(session, DEFAULT_PROJECT_ID).list_parts(
        "a"
    ),
    "is a webhook due": lambda session: WebhookQueue(session).is_any_due(now=NOW),
    "next webhook": lambda session: WebhookQueue(session).claim(now=NOW, lease_for=MINUTE),
    "given up webhooks": lambda session: WebhookQueue(session).give_up(older_than=NOW, now=NOW),
    "old webhooks": lambda session: WebhookQueue(session).delete_ended(older_than=NOW),
    "old records": lambda session: OldIdempotencyRecords(session).delete_older(than=NOW),
}
_MAY_BE_READ = {"api_keys", "saved_states", "webhook_endpoints", "workers"}
"""Tables with few rows: a few keys and endpoints of each project, states of jobs that may be
continued, and workers that run."""
_MAY_READ_A_PROJECT = {
    *("use", "count what is erased", "erase jobs", "erase the rest"),
    *("jobs that are kept no longer", "list models"),
}
"""Questions about all that a project has, or that read it in order, up to a limit."""
_SHORT_INDEXES = {"ix_data_checks_held", "ix_data_checks_kept", "ix_jobs_needs"}
"""Indexes with few rows: those of jobs that have not ended. A claim looks in `ix_jobs_needs` for
the first project with a queued job. With PostgreSQL this has no condition, and reads one row."""


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new database. In the one of all tests, deleted rows make tables large, and plans others."""
    if database_kind == "sqlite":
        yield ""
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    with postgres.database() as url:
        yield url


def _added_file(session: Session) -> Any:
    file = build_file()
    FileRepository(session, DEFAULT_PROJECT_ID).add(file)
    return file


def _added_job(session: Session) -> Any:
    job = build_job()
    session.add(job)
    session.flush()
    return job


def _added_log(session: Session) -> str:
    """Id of a job with a loss log of ten steps, each with an evaluation."""
    job = _added_job(session)
    session.add_all(build_step(job, step, valid_loss=1.0) for step in range(1, 11))
    session.flush()
    return job.id


def _added_upload(session: Session) -> Any:
    upload = build_upload()
    UploadRepository(session, DEFAULT_PROJECT_ID).add(upload)
    return upload


def explain(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """The lines of a plan; with PostgreSQL made to prefer an index, as to few rows it would not."""
    if connection.dialect.name == "sqlite":
        return [
            row[-1]
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    return [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]


def tables_read_whole(plan: list[str]) -> set[str]:
    """Those that are scanned, and those of which a whole index is read that is not short."""
    plan = [line for line in plan if not any(name in line for name in _SHORT_INDEXES)]
    found = [re.search(r"(?:^SCAN|Seq Scan on) (\w+)", line) for line in plan]
    tables = {match[1] for match in found if match and match[1] != "CONSTANT"}
    for node in "\n".join(plan).split("->"):
        by_index = re.search(r"(?:Index Scan|Index Only Scan) using \S+ on (\w+)", node)
        if by_index and "Index Cond:" not in node:
            tables.add(by_index[1])
    return {table for table in tables if not table.startswith("anon_")}


def plans_of(database: Database, act: Callable[[Session], object]) -> list[list[str]]:
    """How the database answers each question that is asked on the way."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            statements.append((statement, parameters))

    with database.writing() as session:
        event.listen(database.engine, "before_cursor_execute", note)
        act(session)
        event.remove(database.engine, "before_cursor_execute", note)
    with database.engine.begin() as connection:
        return [explain(connection, *one) for one in statements]


@pytest.mark.parametrize("asked", _ASKED)
def test_no_table_is_read_whole(database: Database, asked: str) -> None:
    file = build_file()
    with database.writing() as session:
        session.add(file)
    add_job(database)
    add_job(database, status=JobStatus.VALIDATING_FILES, training_file_id=file.id)

    plans = plans_of(database, _ASKED[asked])

    assert plans
    read = {table for plan in plans for table in tables_read_whole(plan)}
    assert read <= _MAY_BE_READ, plans


@pytest.mark.only_sqlite  # PostgreSQL knows how many rows a project has
@pytest.mark.parametrize("asked", sorted(_ASKED.keys() - _MAY_READ_A_PROJECT))
def test_no_project_is_read_whole(database: Database, asked: str) -> None:
    add_job(database)

    lines = [line for plan in plans_of(database, _ASKED[asked]) for line in plan]

    by_project = "|".join(("jobs", "files", "checkpoints", "tasks", "events", "tuned_models"))
    whole = re.compile(rf"SEARCH ({by_project}) USING (COVERING )?INDEX \S+ \(project_id=\?\)")
    read = [line for line in lines if whole.match(line)]
    assert not [line for line in read if not any(name in line for name in _SHORT_INDEXES)]


def test_the_list_of_files_does_not_read_those_that_it_hides(database: Database) -> None:
    job = add_job(database)
    claim(database)
    with database.writing() as session:
        checkpoint = build_checkpoint(job)
        session.add(checkpoint)
        session.flush()
        hidden = [build_file(checkpoint_id=checkpoint.id, job_id=job.id) for _ in range(1000)]
        session.add_all([*hidden, *(build_file() for _ in range(300))])
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # it decides by how many rows there are
            connection.exec_driver_sql("ANALYZE files")

    (plan,) = plans_of(database, lambda session: _list_files(session, after="z"))

    assert "ix_files_listed" in "\n".join(plan)


@pytest.mark.only_sqlite  # PostgreSQL decides by how many rows there are
def test_the_files_of_a_checkpoint_are_found_by_it(database: Database) -> None:
    (plan,) = plans_of(database, lambda session: _list_files(session, checkpoint="a"))

    assert "ix_files_checkpoint_id_project_id (checkpoint_id=?)" in "\n".join(plan)


def test_a_table_that_is_read_whole_is_noticed(database: Database) -> None:
    with database.engine.begin() as connection:
        plan = explain(connection, "SELECT id FROM jobs WHERE worker_id = 'a' ORDER BY id", ())

    assert tables_read_whole(plan) == {"jobs"}
