"""Every released schema becomes the newest one, with many jobs in it, killed at each step."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Connection, MetaData, Table, event, insert, inspect, select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.migrate import MIGRATIONS, newest_revision, read_revision, upgrade
from app.core.db.session import Database
from app.core.db.tables import StepRow
from tests.builders import NOW, build_config
from tests.effort import effort

JOBS = effort(500, long=10_000)
RELEASED = [
    script.revision
    for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()
    if script.nextrev
]
SKIPPED = effort(7, long=1)
"""Between two steps at which an older schema's upgrade is killed. It ends with the steps of newer
ones, and of the newest it is killed at every step."""
MOVED = {"attempts": {"host", "pid", "process_started"}}
"""Columns that a migration replaces: 0007 keeps processes in the table `workers`."""
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    database = Database(empty_database_url)
    yield database
    database.dispose()


def build_row(number: int) -> dict[str, Any]:
    """A job as the first schema knew it."""
    status = STATUSES[number % len(STATUSES)]
    has_ended = status in STATUSES[2:]
    return {
        "id": f"ftjob-{number:026}",
        "project_id": DEFAULT_PROJECT_ID,
        "status": status,
        "created_at": NOW,
        "started_at": NOW,
        "finished_at": NOW if has_ended else None,
        "lease_expires_at": NOW if status == "running" else None,
        "error": {"code": "x", "message": "y"} if status == "failed" else None,
        "base_model": "tiny",
        "training_file_id": "file-1",
        "config": build_config(seed=number).model_dump(mode="json"),
        "fine_tuned_model": f"ft:tiny:tunery::{number}",
        "attempt": 1,
        "trained_steps": number,
    }


def fill(database: Database) -> None:
    """In the schema that the database has, whatever the models of today say."""
    numbers = range(JOBS)
    with database.engine.begin() as connection:
        tables = MetaData()
        tables.reflect(connection)
        tables.tables["jobs"].c.error.type = JSON(none_as_null=True)
        rows = {
            "jobs": [build_row(number) for number in numbers],
            "attempts": [
                {"job_id": build_row(n)["id"], "attempt": 1, "worker_id": "w", "started_at": NOW}
                for n in numbers
            ],
            "job_metadata": [
                {"job_id": build_row(number)["id"], "key": "n", "value": str(number)}
                for number in numbers
            ],
            "steps": [
                {"job_id": build_row(n)["id"], "step": 1, "attempt": 1, "metrics": {"step": 1}}
                for n in numbers
            ],
        }
        for name, values in rows.items():
            connection.execute(insert(tables.tables[name]), values)


def columns_of(database: Database) -> dict[str, list[str]]:
    with database.engine.connect() as connection:
        inspector = inspect(connection)
        return {
            name: sorted(
                {column["name"] for column in inspector.get_columns(name)} - MOVED.get(name, set())
            )
            for name in inspector.get_table_names()
            if name != "alembic_version"
        }


def digest(database: Database, columns: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
    """How many rows of each table, and a hash over these columns of them."""
    found: dict[str, tuple[int, str]] = {}
    with database.engine.connect() as connection:
        for name, wanted in columns.items():
            table = Table(name, MetaData(), autoload_with=connection)
            keys = [column.name for column in table.primary_key]
            query = select(*(table.c[column] for column in wanted)).order_by(
                *(table.c[key] for key in keys)
            )
            rows = [str(tuple(row)) for row in connection.execute(query)]
            whole = hashlib.sha256("\n".join(rows).encode()).hexdigest()
            found[name] = (len(rows), whole)
    return found


def revision(database: Database) -> str | None:
    with database.reading() as session:
        return read_revision(session)


def upgrade_and_die(url: str, at_statement: int) -> None:
    """Upgrade, in a process that the machine kills before the statement of this number."""
    database = Database(url)
    done = [0]

    def count(*_: object) -> None:
        done[0] += 1
        if done[0] == at_statement:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_commit(_connection: Connection) -> None:
        count()

    event.listen(database.engine, "before_cursor_execute", count)
    event.listen(database.engine, "commit", before_commit)
    upgrade(database)


@pytest.mark.parametrize("released", RELEASED)
def test_an_upgrade_that_is_killed_at_any_step_is_done_the_next_time(
    empty: Database, empty_database_url: str, released: str
) -> None:
    upgrade(empty, released)
    fill(empty)
    columns = columns_of(empty)
    before = digest(empty, columns)
    empty.dispose()

    spawn = multiprocessing.get_context("fork")
    kills, statement, further = 0, 1, 1 if released == RELEASED[0] else SKIPPED
    while True:
        process = spawn.Process(target=upgrade_and_die, args=(empty_database_url, statement))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills, statement = kills + 1, statement + further
        assert revision(empty) == released
        if kills % 8 == 1:  # to read all rows takes longer than to migrate them
            assert digest(empty, columns) == before
        empty.dispose()

    assert statement > 6
    assert revision(empty) == newest_revision()
    assert digest(empty, columns) == before


def test_the_losses_of_old_steps_are_found_in_their_columns(empty: Database) -> None:
    upgrade(empty, "0013")
    logged = [
        {"step": 0, "train_loss": None, "valid_loss": 4.5},
        {"step": 1, "train_loss": 2.25, "valid_loss": None},
        {"step": 2},
    ]
    with empty.engine.begin() as connection:
        tables = MetaData()
        tables.reflect(connection)
        tables.tables["jobs"].c.error.type = JSON(none_as_null=True)
        job = {"priority": 0, "crashes": 0, "interruptions": 0} | build_row(0)
        connection.execute(insert(tables.tables["jobs"]), job)
        rows = [
            {"job_id": job["id"], "step": row["step"], "attempt": 1, "metrics": row}
            for row in logged
        ]
        connection.execute(insert(tables.tables["steps"]), rows)

    upgrade(empty)

    with empty.reading() as session:
        columns = select(StepRow.train_loss, StepRow.valid_loss).order_by(StepRow.step)
        found = [tuple(row) for row in session.execute(columns)]
    assert found == [(None, 4.5), (2.25, None), (None, None)]
