"""SQLite: one writer at a time. With a write-ahead log, readers never wait for it."""

import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, cast

from sqlalchemy import URL, Connection, PoolProxiedConnection, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.db.backend import (
    BrokenReferenceError,
    DatabaseUnusableError,
    Description,
    Kind,
    SnapshotError,
    busy,
    full,
    reason_of,
)
from app.core.errors import OperatorError, ServiceError
from app.core.machine import durable

try:  # a recent SQLite, where a wheel of it exists
    from pysqlite3 import dbapi2 as sqlite_driver  # pyright: ignore[reportMissingTypeStubs]
except ImportError:
    from sqlite3 import dbapi2 as sqlite_driver

_BUSY, _IO_ERROR, _FULL = 5, 10, 13
_NO_PERMISSION, _READ_ONLY_FILE, _CANNOT_OPEN = 3, 8, 14
_CORRUPT, _NOT_A_DATABASE = 11, 26
"""Result codes of SQLite, https://sqlite.org/rescode.html: the low byte of an extended code."""
_NO_ROOM_BYTES = 64 * 1024
"""With less free space, the shared index of a write-ahead log cannot grow."""

_RETRY_S = 0.01
_MAX_PROBLEMS = 20
_DriverError = cast("type[Exception]", sqlite_driver.OperationalError)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - defined in C
_READ_ONLY = "tunery_read_only"


class Sqlite:
    """A transaction that writes takes the only write lock when it begins.

    So a read followed by a write cannot be refused halfway.
    """

    kind: ClassVar[Kind] = "sqlite"
    read_only: Mapping[str, Any] = {_READ_ONLY: True}

    def __init__(self, url: URL, busy_timeout_s: float, kept_connections: int) -> None:
        del kept_connections  # a file has no limit of them
        self.file: Path | None = Path(url.database) if url.database else None
        self._directory = Path(url.database or ".").parent
        durable.make_directory(self._directory)
        self._busy_timeout_s = busy_timeout_s
        self._journal_mode = "WAL" if is_wal_safe(sqlite_driver.sqlite_version_info) else "DELETE"
        self.engine = create_engine(
            url,
            module=sqlite_driver,
            connect_args={"timeout": busy_timeout_s},
            max_overflow=-1,  # a reader must not wait for the connections of waiting writers
        )
        event.listen(self.engine, "connect", self._configure)
        event.listen(self.engine, "begin", _begin)
        self._watcher: PoolProxiedConnection | None = None

    def commit(self, session: Session) -> None:
        session.commit()

    def version(self) -> int | None:
        """SQLite counts the commits of all other connections for the one that asks."""
        try:
            watcher = self._watcher = self._watcher or self._open_watcher()
            cursor = watcher.cursor()
            cursor.execute("PRAGMA data_version")
            row = cursor.fetchone()
            cursor.close()
        except (SQLAlchemyError, _DriverError):
            return None
        return row and row[0]

    def ask_version(self) -> str | None:
        return None  # `version` knows it, except while the file cannot be read

    def dispose(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self.engine.dispose()

    def _open_watcher(self) -> PoolProxiedConnection:
        watcher = self.engine.raw_connection()
        watcher.detach()  # nobody else may get a connection with the setting below
        _execute(watcher, "PRAGMA busy_timeout = 0")  # the caller of `version` cannot wait
        return watcher

    def as_expected_error(self, error: SQLAlchemyError) -> ServiceError | OperatorError | None:
        code = _code_of(error.orig) if isinstance(error, DBAPIError) else 0
        if code == _BUSY:
            return busy()
        if code == _FULL or (code == _IO_ERROR and self._has_no_room()):
            return full()
        if code in (_NO_PERMISSION, _READ_ONLY_FILE, _CANNOT_OPEN):
            return self._unusable(error, "Give the user of this process the right to write it.")
        if code in (_CORRUPT, _NOT_A_DATABASE):
            advice = "Keep a copy of it and restore a backup: see docs/maintenance.md."
            return self._unusable(error, advice)
        return None

    def _unusable(self, error: SQLAlchemyError, advice: str) -> OperatorError:
        return DatabaseUnusableError(f"The database {self.file}: {reason_of(error)}. {advice}")

    def lock_names(self, session: Session, *names: str) -> None:
        """Do nothing: SQLite has one writer at a time."""

    @contextmanager
    def migrating(self) -> Generator[Connection]:
        """Do not enforce foreign keys meanwhile, and check them at the end.

        SQLite can change little of a table in place, so alembic copies the table and drops the old
        one. SQLite would refuse that if other tables reference it.

        Source:
            sqlite.org/lang_altertable.html, 7
        """
        with self.engine.connect() as connection:
            # Through the driver: in a transaction, which SQLAlchemy would begin, it does nothing.
            _execute(connection.connection, "PRAGMA foreign_keys = OFF")
            try:
                with connection.begin():
                    yield connection
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                    if broken is not None:
                        row = "Row {1} of {0} names no row of {2}.".format(*broken)
                        raise BrokenReferenceError(row)
            finally:
                _execute(connection.connection, "PRAGMA foreign_keys = ON")

    def now(self, session: Session) -> datetime | None:
        return None

    def describe(self, session: Session) -> Description:
        version = ".".join(map(str, sqlite_driver.sqlite_version_info))
        mode = session.execute(text("PRAGMA journal_mode")).scalar_one()
        if mode == "wal":
            return Description(f"SQLite {version}, with a write-ahead log")
        return Description(
            f"SQLite {version}",
            f"can corrupt a database with a write-ahead log, so the slower journal mode '{mode}' "
            "is used",
            "Install the package pysqlite3, or SQLite 3.51.3 or newer, for more speed.",
        )

    def find_damage(self, session: Session) -> list[str]:
        try:
            damage = session.execute(text(f"PRAGMA integrity_check({_MAX_PROBLEMS})")).scalars()
            lines = [line for line in damage if line != "ok"]
            broken = session.execute(text("PRAGMA foreign_key_check")).fetchmany(_MAX_PROBLEMS)
        except OperationalError:  # such as a busy database
            raise
        except DatabaseError as error:  # too damaged to be checked
            return [str(error.orig)]
        return lines + [
            f"row {row} of {table} names no row of {parent}" for table, row, parent, _ in broken
        ]

    def log_bytes(self) -> int | None:
        try:
            return Path(f"{self.file}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def hold_snapshot(self, session: Session) -> None:
        """Do nothing: every transaction that only reads sees one moment."""

    def copy_to(self, target: Path, session: Session) -> None:
        source: Any = session.connection().connection.driver_connection
        copy = type(source)(str(target))
        try:
            source.backup(copy)  # in the transaction of the session
        finally:
            copy.close()

    def load_dump(self, source: Path, *, replace: bool) -> None:
        raise SnapshotError(f"{source} is restored as a file, not loaded: SQLite has no server.")

    def _has_no_room(self) -> bool:
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize < _NO_ROOM_BYTES

    def _configure(self, connection: DBAPIConnection, _record: Any) -> None:
        # The driver must not begin transactions by itself: it does so only before some
        # statements, so that reads would not be repeatable and DDL would not be rolled back.
        connection.isolation_level = None
        _set_journal_mode(connection, self._journal_mode, within_s=self._busy_timeout_s)
        _execute(connection, "PRAGMA synchronous = FULL")  # in WAL, NORMAL may lose commits
        _execute(connection, "PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_READ_ONLY, False):
        # Through the driver itself: no lock is taken, so there is no error to translate.
        _execute(connection.connection, "BEGIN")
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _code_of(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _execute(connection: PoolProxiedConnection | DBAPIConnection, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()


def _set_journal_mode(connection: DBAPIConnection, mode: str, *, within_s: float) -> None:
    """Set the journal mode as soon as nobody writes.

    SQLite waits for every other lock by itself, but refuses this one at once: for example when
    two processes open a new database at the same time and one of them creates its tables.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            _execute(connection, f"PRAGMA journal_mode = {mode}")
        except _DriverError as error:
            if _code_of(error) != _BUSY or time.monotonic() >= deadline_s:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def is_wal_safe(version: tuple[int, ...]) -> bool:
    """False for the versions in which two writing processes can corrupt a WAL database.

    Source:
        sqlite.org/wal.html, "The WAL-reset bug": 3.7.0 to 3.51.2, less 3.44.6+ and 3.50.7+.
    """
    is_fixed_branch = (3, 44, 6) <= version < (3, 45) or (3, 50, 7) <= version < (3, 51)
    return version >= (3, 51, 3) or is_fixed_branch
