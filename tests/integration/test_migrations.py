"""The schema, as real migrations on a real file make it."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CheckConstraint

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.backend import BrokenReferenceError
from app.core.db.base import Base, Project
from app.core.db.migrate import MIGRATIONS, newest_revision, read_revision, upgrade
from app.core.db.postgresql import MIGRATION_LOCK
from app.core.db.session import Database
from app.core.db.tables import Job, JobMetadata
from benchmarks.support.postgres import PostgresServer
from tests.builders import add_job, dump_tables, get_job, lock_out_writers
from tests.waiting import wait_until

PROCESSES = 3

_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{newest}"


def upgrade():{body}
"""
THAT_BREAKS_OFF = """
    op.create_table("half", sa.Column("id", sa.String()))
    op.execute("INSERT INTO half (id) VALUES ('a')")
    raise RuntimeError("the power is gone")
"""
THAT_REBUILDS_JOBS = """
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("colour", sa.String(), server_default="red"))
        jobs.create_check_constraint("ck_jobs_colour", sa.text("colour <> 'blue'"))
"""
THAT_LOSES_JOBS = """
    op.execute("DELETE FROM jobs")
"""


@pytest.fixture
def migrations_with(tmp_path: Path) -> Callable[[str], Path]:
    """A directory of migrations whose newest one has this body."""

    def write(body: str) -> Path:
        directory = tmp_path / "migrations"
        shutil.copytree(MIGRATIONS, directory)
        source = _MIGRATION.format(newest=newest_revision(), body=body)
        (directory / "versions" / "9999_new.py").write_text(source)
        return directory

    return write


def revision(database: Database) -> str | None:
    with database.reading() as session:
        return read_revision(session)


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    database = Database(empty_database_url)
    yield database
    database.dispose()


def tables(database: Database) -> set[str]:
    with database.engine.connect() as connection:
        return set(inspect(connection).get_table_names())


def migrate_when_all_are_ready(url: str, barrier: "multiprocessing.Barrier") -> set[str]:  # pyright: ignore[reportInvalidTypeForm] - a function
    database = Database(url)
    barrier.wait(60)
    upgrade(database)
    return tables(database)


def test_the_migrations_make_what_the_models_say(empty: Database) -> None:
    upgrade(empty)

    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_make_every_constraint_of_the_models(empty: Database) -> None:
    """Alembic does not compare these."""
    upgrade(empty)

    with empty.engine.connect() as connection:
        inspector = inspect(connection)
        for table in Base.metadata.tables.values():
            promised = {
                str(constraint.name)
                for constraint in table.constraints
                if isinstance(constraint, CheckConstraint)
            }
            found = {str(one["name"]) for one in inspector.get_check_constraints(table.name)}
            assert found == promised


def test_the_default_project_is_there_from_the_start(empty: Database) -> None:
    upgrade(empty)

    with empty.reading() as session:
        assert session.get(Project, DEFAULT_PROJECT_ID) is not None


def test_migrating_again_changes_nothing(empty: Database) -> None:
    upgrade(empty)
    before = tables(empty)

    upgrade(empty)

    assert tables(empty) == before


def test_processes_that_start_at_once_all_find_the_schema(
    empty_database_url: str, empty: Database
) -> None:
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(PROCESSES) as pool:
        barrier = manager.Barrier(PROCESSES)
        found = pool.starmap(
            migrate_when_all_are_ready, [(empty_database_url, barrier)] * PROCESSES
        )

    expected = {*Base.metadata.tables, "alembic_version"}
    assert found == [expected] * PROCESSES
    assert tables(empty) == expected


def test_who_finds_the_newest_schema_waits_for_no_writer(
    empty: Database, empty_database_url: str
) -> None:
    upgrade(empty)
    starting = Database(empty_database_url, busy_timeout_s=0)

    with empty.writing() as session:
        lock_out_writers(session)
        upgrade(starting)

    starting.dispose()


def test_a_migration_that_fails_half_way_leaves_nothing(
    empty: Database, migrations_with: Callable[[str], Path]
) -> None:
    upgrade(empty)
    before, was = tables(empty), revision(empty)
    with pytest.raises(RuntimeError, match="the power is gone"):
        upgrade(empty, migrations=migrations_with(THAT_BREAKS_OFF))

    assert (tables(empty), revision(empty)) == (before, was)


def test_a_table_that_others_reference_can_be_rebuilt_with_its_rows(
    empty: Database, migrations_with: Callable[[str], Path]
) -> None:
    upgrade(empty)
    job = add_job(empty, metadata_items=[JobMetadata(key="a", value="b")])
    before = dump_tables(empty)

    upgrade(empty, migrations=migrations_with(THAT_REBUILDS_JOBS))

    assert dump_tables(empty) == before
    with empty.reading() as session:
        assert session.scalar(text("SELECT colour FROM jobs")) == "red"
    with pytest.raises(IntegrityError), empty.writing() as session:
        session.execute(text("DELETE FROM jobs"))
    assert get_job(empty, job.id).id == job.id


@pytest.mark.only_sqlite
def test_a_migration_that_would_leave_rows_pointing_nowhere_is_refused(
    empty: Database, migrations_with: Callable[[str], Path]
) -> None:
    """On SQLite, which then does not look by itself; PostgreSQL refuses the statement."""
    upgrade(empty)
    add_job(empty)
    before, was = dump_tables(empty), revision(empty)

    with pytest.raises(BrokenReferenceError, match=r"names no row of jobs"):
        upgrade(empty, migrations=migrations_with(THAT_LOSES_JOBS))

    assert (dump_tables(empty), revision(empty)) == (before, was)
    with empty.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_process_waits_for_the_migrations_of_another_however_long_they_take(
    postgres: PostgresServer,
) -> None:
    """PostgreSQL's lock_timeout would end that wait as well."""
    with postgres.database(migrated=False) as url, ThreadPoolExecutor(1) as threads:
        first, second = Database(url), Database(url, busy_timeout_s=0)
        with first.writing() as session:
            session.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            waiting = threads.submit(upgrade, second)
            query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            wait_until(lambda: session.scalar(query), within_s=30)
            session.execute(text("SELECT pg_sleep(0.2)"))  # it waits 1 ms for anything else
        waiting.result(30)

        assert revision(second) == newest_revision()
        first.dispose()
        second.dispose()


_OLD_JOB = text(
    "INSERT INTO jobs (id, project_id, status, created_at, priority, base_model, training_file_id, "
    "config, fine_tuned_model, attempt, trained_steps, crashes, interruptions) "
    "VALUES (:id, :project, 'queued', :at, 0, 'tiny', 'file-1', '{}', 'ft:tiny', 0, 0, 0, 0)"
)
_OLD_EVENT = text(
    "INSERT INTO events (id, project_id, job_id, created_at, level, type, message) "
    "VALUES (:id, :project, :job, :at, 'info', 'message', 'Hello')"
)


def test_the_events_of_older_releases_are_numbered(empty: Database) -> None:
    upgrade(empty, "0013")
    old = {"project": DEFAULT_PROJECT_ID, "at": "2026-01-02 03:04:05.000000+00:00"}
    with empty.writing() as session:
        for job_id in ("ftjob-1", "ftjob-2"):
            session.execute(_OLD_JOB, old | {"id": job_id})
        for number, job_id in enumerate(("ftjob-1", "ftjob-2", "ftjob-1", "ftjob-1")):
            session.execute(_OLD_EVENT, old | {"id": f"ftevent-{number}", "job": job_id})

    upgrade(empty)

    with empty.reading() as session:
        events = session.execute(text("SELECT id, number FROM events ORDER BY id")).all()
        jobs = {job.id: job for job in session.scalars(select(Job))}
    assert events == [("ftevent-0", 1), ("ftevent-1", 1), ("ftevent-2", 2), ("ftevent-3", 3)]
    assert [jobs[job_id].event_count for job_id in ("ftjob-1", "ftjob-2")] == [3, 1]
    assert jobs["ftjob-1"].updated_at == jobs["ftjob-1"].created_at
