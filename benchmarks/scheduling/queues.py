"""A server with a long queue of several projects, and what its jobs would take."""

import json
import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import text

from app.core.abilities.ability import Ability
from app.core.abilities.needs import needs_of
from app.core.db.base import Project
from app.core.db.migrate import upgrade
from app.core.db.session import Database
from app.core.job.artifacts import NUMERICS_VERSION
from app.core.job.training_config import TrainingConfig
from benchmarks.support.postgres import PostgresServer

GB = 1_000_000_000
BASE_MODEL = "tiny"
START = datetime(2030, 1, 1, tzinfo=UTC)
"""When a simulation begins."""

LONGEST_S = 2 * 3600.0
"""Longest training, in seconds."""

_MEDIAN_S, _SPREAD, _SHORTEST_S = 600.0, 0.8, 60.0
_SETTINGS = {
    "autovacuum": "on",
    "autovacuum_naptime": "15s",
    "max_connections": "1200",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "track_activity_query_size": "8192",
}
"""Settings of a server that is tuned for many writes: by default, checkpoints come too often."""

_FILL = """
INSERT INTO jobs (id, project_id, status, created_at, updated_at, priority, base_model,
  training_file_id, config, fine_tuned_model, attempt, trained_steps, crashes, interruptions,
  event_count, needed_memory_bytes, needs)
SELECT 'ftjob-' || lpad(n::text, 26, '0'), :project, 'queued', :at, :at,
  CASE WHEN n % :kinds >= :ahead THEN -1 WHEN n % 10 = 3 THEN 10 ELSE 0 END, :base_model,
  'file-in', CAST(:config AS json),
  'ft:tiny:tunery::' || n, 0, 0, 0, 0, 0, (CAST(:memory AS bigint[]))[1 + n % :kinds],
  (CAST(:needs AS text[]))[1 + n % :kinds]
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
"""


_ITS_INDEXES = "FROM pg_indexes WHERE tablename = 'jobs' AND indexname <> 'pk_jobs'"
_INDEXES = text(f"SELECT indexdef {_ITS_INDEXES}")
_INDEX_NAMES = text(f"SELECT indexname {_ITS_INDEXES}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A project, and the jobs that it has queued when a simulation begins."""

    project_id: str
    jobs: int
    max_running_jobs: int | None = None


MEMORY = (8 * GB,) * 15 + (24 * GB,) * 4 + (48 * GB,)
"""Memory that each of twenty jobs needs, in turn, in bytes."""


def tenants(jobs: int, *, projects: int = 8, limit: int = 10) -> list[Tenant]:
    """Projects that have queued the same number of jobs, but for the last.

    That one has a tenth as many, and may run only so many at once.
    """
    each = 10 * jobs // (10 * projects - 9)
    others = [Tenant(f"proj-{number}", each) for number in range(projects - 1)]
    return [*others, Tenant("proj-limited", jobs - each * (projects - 1), limit)]


def duration_s(job_id: str, seed: int) -> float:
    """How long a job trains: ten minutes in the median, an hour or more for one in eighty."""
    draw = random.Random(f"{seed} {job_id}").lognormvariate(0.0, _SPREAD)  # noqa: S311
    return min(max(_MEDIAN_S * draw, _SHORTEST_S), LONGEST_S)


def ability_with(memory_bytes: int) -> Ability:
    """What a simulated worker can do: machines differ in their memory only."""
    return Ability(
        machine="simulated",
        cores=4,
        threads=1,
        memory_bytes=memory_bytes,
        processor="simulated",
        instructions="",
        torch="1",
        transformers="1",
        peft="1",
        numerics=NUMERICS_VERSION,
        base_models=(BASE_MODEL,),
    )


@contextmanager
def server(*, durable: bool = True) -> Generator[PostgresServer]:
    """A server that vacuums by itself, as an operator's does, and waits for its disk."""
    postgres = PostgresServer(durable=durable, settings=_SETTINGS)
    try:
        yield postgres
    finally:
        postgres.close()


@contextmanager
def filled(
    postgres: PostgresServer, queue: Sequence[Tenant], memory: Sequence[int] = MEMORY
) -> Generator[Database]:
    """A new database with these queues, and statistics as a server would have them by itself."""
    with postgres.database(migrated=False) as url:
        database = Database(url)
        upgrade(database)
        first = 0
        for tenant in queue:
            add_jobs(database, tenant, first=first, memory=memory)
            first += tenant.jobs
        vacuum(database)
        try:
            yield database
        finally:
            database.dispose()


@contextmanager
def indexed_later(database: Database) -> Generator[None]:
    """Fill the table of jobs without its indexes, which takes a fraction of the time."""
    with database.writing() as session:
        kept = list(session.scalars(_INDEXES))
        for name in session.scalars(_INDEX_NAMES).all():
            session.execute(text(f"DROP INDEX {name}"))
    yield
    with database.writing() as session:
        for definition in kept:
            session.execute(text(definition))


def vacuum(database: Database) -> None:
    """Do what a server does by itself after a while."""
    with database.engine.connect() as connection:
        alone = connection.execution_options(isolation_level="AUTOCOMMIT")
        alone.exec_driver_sql("VACUUM ANALYZE")


def add_jobs(
    database: Database,
    tenant: Tenant,
    *,
    first: int,
    at: datetime = START,
    memory: Sequence[int] = MEMORY,
    needs: Sequence[str] | None = None,
    last: int = 0,
) -> None:
    """Add a project with its queued jobs, which have the numbers from `first` on.

    Args:
        memory: memory that the jobs need, in turn, in bytes.
        needs: what they need of a worker, in turn. By default, the memory and the base model.
        last: how many of the kinds, from the end, wait behind all others.
    """
    values = {
        "project": tenant.project_id,
        "at": at,
        "base_model": BASE_MODEL,
        "config": json.dumps(TrainingConfig(seed=7).model_dump(mode="json")),
        "memory": list(memory),
        "needs": list(needs or [needs_of(BASE_MODEL, needed) for needed in memory]),
        "kinds": len(memory),
        "ahead": len(memory) - last,
        "first": first,
        "last": first + tenant.jobs - 1,
    }
    with database.writing() as session:
        session.add(
            Project(
                id=tenant.project_id,
                name=tenant.project_id,
                created_at=at,
                max_running_jobs=tenant.max_running_jobs,
            )
        )
        session.flush()
        session.execute(text(_FILL), values)
