"""Engine and sessions. `Session` is imported from here, so that SQL stays in this package."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.core import durable
from app.core.errors import DatabaseBusyError

try:  # a recent SQLite of its own, where there is a wheel of it
    from pysqlite3 import dbapi2 as sqlite_driver  # pyright: ignore[reportMissingTypeStubs]
except ImportError:
    from sqlite3 import dbapi2 as sqlite_driver

__all__ = ["Database", "Session"]

BUSY_TIMEOUT_S = 15
"""How long a statement waits for another process's write before it gives up."""

_RETRY_S = 0.01
_DriverError = cast("type[Exception]", sqlite_driver.OperationalError)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - from its part in C
_READ_ONLY = "tunery_read_only"


class Database:
    """Short transactions on one database.

    `writing` takes SQLite's only write lock when it begins, so that a read followed by a write
    cannot be refused half-way; with a write-ahead log, `reading` never waits for a writer.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.engine = _create_engine(url, busy_timeout_s)
        read_engine = self.engine.execution_options(**{_READ_ONLY: True})
        self._write_factory = sessionmaker(self.engine, expire_on_commit=False)
        self._read_factory = sessionmaker(read_engine, expire_on_commit=False)

    @contextmanager
    def writing(self) -> Generator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            DatabaseBusyError: another process held the database for too long; nothing was done.
        """
        with _busy_as_service_error(), self._write_factory.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Generator[Session]:
        """One consistent view; what the block changes is thrown away.

        Raises:
            DatabaseBusyError: as above.
        """
        with _busy_as_service_error(), self._read_factory() as session:
            yield session

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()


@contextmanager
def _busy_as_service_error() -> Generator[None]:
    try:
        yield
    except OperationalError as error:
        if "database is locked" not in str(error.orig):
            raise
        message = "The database is busy. Nothing was done; send the request again in a moment."
        raise DatabaseBusyError(message) from error


def _create_engine(url: str, busy_timeout_s: float) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url)
    if parsed.database:
        durable.make_directory(Path(parsed.database).parent)
    engine = create_engine(url, module=sqlite_driver, connect_args={"timeout": busy_timeout_s})
    wal_is_safe = _is_wal_safe(sqlite_driver.sqlite_version_info)

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction] - registered
        # The driver must not begin transactions by itself: it does so only before some
        # statements, so that reads would not be repeatable and DDL not be rolled back.
        connection.isolation_level = None
        cursor = connection.cursor()
        _set_journal_mode(cursor, "WAL" if wal_is_safe else "DELETE", within_s=busy_timeout_s)
        cursor.execute("PRAGMA synchronous = FULL")  # in WAL, NORMAL loses commits on power loss
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction] - registered
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _set_journal_mode(cursor: DBAPICursor, mode: str, *, within_s: float) -> None:
    """Set the journal mode, once nobody writes.

    SQLite waits for every other lock by itself, but refuses this at once: as when two processes
    open a new database at the same time, and one of them is creating its tables.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            cursor.execute(f"PRAGMA journal_mode = {mode}")
        except _DriverError:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def _is_wal_safe(version: tuple[int, ...]) -> bool:
    """False for the versions in which two writing processes can corrupt a WAL database.

    Source:
        sqlite.org/wal.html, "The WAL-reset bug": 3.7.0 to 3.51.2, less 3.44.6+ and 3.50.7+.
    """
    is_mended_branch = (3, 44, 6) <= version < (3, 45) or (3, 50, 7) <= version < (3, 51)
    return version >= (3, 51, 3) or is_mended_branch
