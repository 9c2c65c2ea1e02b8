"""SQLite: a single writer at a time and, with a write-ahead log, readers that never wait for it."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Connection, PoolProxiedConnection, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from app.core import durable
from app.core.db.backend import busy, full
from app.core.errors import ServiceError

try:  # a recent SQLite of its own, where there is a wheel of it
    from pysqlite3 import dbapi2 as sqlite_driver  # pyright: ignore[reportMissingTypeStubs]
except ImportError:
    from sqlite3 import dbapi2 as sqlite_driver

_BUSY, _IO_ERROR, _FULL = 5, 10, 13
"""Of SQLite's result codes, https://sqlite.org/rescode.html; the low byte of an extended one."""
_NO_ROOM_BYTES = 64 * 1024
"""With less space than that, the shared index of a write-ahead log cannot grow."""

_RETRY_S = 0.01
_DriverError = cast("type[Exception]", sqlite_driver.OperationalError)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - from its part in C
_READ_ONLY = "tunery_read_only"


class Sqlite:
    """A transaction that writes takes the only write lock when it begins.

    So a read followed by a write cannot be refused half-way.
    """

    read_only: Mapping[str, Any] = {_READ_ONLY: True}

    def __init__(self, url: URL, busy_timeout_s: float) -> None:
        self._directory = Path(url.database or ".").parent
        durable.make_directory(self._directory)
        self._busy_timeout_s = busy_timeout_s
        self._journal_mode = "WAL" if is_wal_safe(sqlite_driver.sqlite_version_info) else "DELETE"
        self.engine = create_engine(
            url,
            module=sqlite_driver,
            connect_args={"timeout": busy_timeout_s},
            max_overflow=-1,  # a reader must not wait for the connections of writers that wait
        )
        event.listen(self.engine, "connect", self._configure)
        event.listen(self.engine, "begin", _begin)
        self._watcher: PoolProxiedConnection | None = None

    def commit(self, session: Session) -> None:
        session.commit()

    def version(self) -> int | None:
        """SQLite counts the commits of all connections but the one that is asked."""
        try:
            watcher = self._watcher = self._watcher or self._open_watcher()
            cursor = watcher.cursor()
            cursor.execute("PRAGMA data_version")
            row = cursor.fetchone()
            cursor.close()
        except (SQLAlchemyError, _DriverError):
            return None
        return row and row[0]

    def dispose(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self.engine.dispose()

    def _open_watcher(self) -> PoolProxiedConnection:
        watcher = self.engine.raw_connection()
        watcher.detach()  # nobody else may have it, with the setting that follows
        cursor = watcher.cursor()
        cursor.execute("PRAGMA busy_timeout = 0")  # whoever asks cannot wait
        cursor.close()
        return watcher

    def as_service_error(self, error: SQLAlchemyError) -> ServiceError | None:
        orig = error.orig if isinstance(error, DBAPIError) else None
        code = getattr(orig, "sqlite_errorcode", 0) & 0xFF
        if code == _BUSY:
            return busy()
        if code == _FULL or (code == _IO_ERROR and self._has_no_room()):
            return full()
        return None

    def _has_no_room(self) -> bool:
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize < _NO_ROOM_BYTES

    def _configure(self, connection: DBAPIConnection, _record: Any) -> None:
        # The driver must not begin transactions by itself: it does so only before some
        # statements, so that reads would not be repeatable and DDL not be rolled back.
        connection.isolation_level = None
        cursor = connection.cursor()
        _set_journal_mode(cursor, self._journal_mode, within_s=self._busy_timeout_s)
        cursor.execute("PRAGMA synchronous = FULL")  # in WAL, NORMAL loses commits on power loss
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_READ_ONLY, False):
        # By the driver itself: it takes no lock, so nothing can go wrong that had to be explained.
        cursor = connection.connection.cursor()
        cursor.execute("BEGIN")
        cursor.close()
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


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


def is_wal_safe(version: tuple[int, ...]) -> bool:
    """False for the versions in which two writing processes can corrupt a WAL database.

    Source:
        sqlite.org/wal.html, "The WAL-reset bug": 3.7.0 to 3.51.2, less 3.44.6+ and 3.50.7+.
    """
    is_mended_branch = (3, 44, 6) <= version < (3, 45) or (3, 50, 7) <= version < (3, 51)
    return version >= (3, 51, 3) or is_mended_branch
