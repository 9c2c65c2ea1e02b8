"""A copy of the database as it is at one moment, and back again."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text, update

from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.job.status import JobStatus

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_POSTGRESQL_DIR = Path("/usr/lib/postgresql")
"""Where Debian and Ubuntu keep PostgreSQL's programs, a directory for each version."""


class SnapshotError(Exception):
    """The database could not be copied or put back; the message says why."""


@contextmanager
def open_snapshot(database: Database) -> Generator[Session]:
    """A session that sees one moment, however many statements it takes; others write meanwhile."""
    with database.reading() as session:
        if not is_sqlite(database):
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        session.execute(text("SELECT count(*) FROM alembic_version"))  # the moment is now
        yield session


def copy_database(database: Database, session: Session, target: Path) -> None:
    """Write what a snapshot sees into the file `target`, which is durable afterwards.

    Raises:
        SnapshotError: a program of PostgreSQL's is missing, or failed.
    """
    if is_sqlite(database):
        source: Any = session.connection().connection.driver_connection
        copy = type(source)(str(target))
        try:
            source.backup(copy)  # in the transaction of the session
        finally:
            copy.close()
    else:
        name = session.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        arguments = ["--format=custom", "--no-owner", f"--snapshot={name}", f"--file={target}"]
        _run_tool(database, "pg_dump", arguments)
    _flush(target)


def is_sqlite(database: Database) -> bool:
    return database.engine.dialect.name == "sqlite"


def load_dump(database: Database, source: Path, *, replace: bool) -> None:
    """Put a dump of PostgreSQL back, wholly or not at all.

    Args:
        replace: drop what is in the database now; otherwise it must be empty.

    Raises:
        SnapshotError: a program of PostgreSQL's is missing, or failed.
    """
    if not replace:
        options = ["--single-transaction", "--exit-on-error", "--no-owner"]
        _run_tool(database, "pg_restore", [*options, str(source)])
        return
    # pg_restore's own --clean drops only what the dump names: tables of a newer schema would be in
    # the way of the older one's.
    names = ", ".join(f'"{name}"' for name in inspect(database.engine).get_table_names())
    drop = [f"--command=DROP TABLE {names} CASCADE"] if names else []
    with tempfile.TemporaryDirectory(prefix="tunery-restore-") as directory:
        script = f"{directory}/script.sql"  # whole before it is run, as psql commits at its end
        _run_tool(
            database, "pg_restore", ["--no-owner", f"--file={script}", str(source)], connects=False
        )
        options = ["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"]
        _run_tool(database, "psql", [*options, *drop, f"--file={script}"])


def has_tables(database: Database) -> bool:
    """Whether it was ever used.

    Raises:
        DatabaseBusyError: it does not answer at the moment.
    """
    with database.service_errors():
        return bool(inspect(database.engine).get_table_names())


def release_running(session: Session, *, now: datetime) -> list[str]:
    """Put every running job back at once, as its worker is not of this copy; returns their ids."""
    running = update(Job).where(Job.status == JobStatus.RUNNING)
    session.execute(running.values(lease_expires_at=_LONG_AGO))
    return RecoveryRepository(session).rescue_expired(now=now)


def _run_tool(
    database: Database, name: str, arguments: list[str], *, connects: bool = True
) -> None:
    """Run a program of PostgreSQL's on the database or, if it does not connect, beside it."""
    url = database.engine.url
    address = url._replace(drivername="postgresql", password=None).render_as_string()
    target = [f"--dbname={address}"] if connects else []
    environment = dict(os.environ)
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)  # not as an argument, which everyone can see
    done = subprocess.run(  # noqa: S603 - PostgreSQL's own program
        [_find_tool(name), *target, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SnapshotError(f"{name} failed: {done.stderr.strip()[:1000]}")


def _find_tool(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    versions = sorted(_POSTGRESQL_DIR.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    if not versions:
        raise SnapshotError(
            f"{name} is neither on the PATH nor below {_POSTGRESQL_DIR}. It is in the package "
            "postgresql-client, and must not be older than the server."
        )
    return str(versions[-1])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
