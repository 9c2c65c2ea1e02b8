"""PostgreSQL, through psycopg: many writers, and a server that may be unreachable."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import URL, func, inspect, select, text
from sqlalchemy import Connection as Transaction
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from app.core.db.backend import (
    DatabaseUnusableError,
    Description,
    Kind,
    SnapshotError,
    away,
    busy,
    full,
    reason_of,
)
from app.core.db.base import UtcDateTime
from app.core.db.postgres.connections import allow_silence, close_returned, make_engine
from app.core.errors import OperatorError, OutcomeUnknownError, ServiceError

MIGRATION_LOCK = 7_864_839
"""Key of the advisory lock of migrations: an arbitrary number, the same in every process."""

_PROGRAMS_DIR = Path("/usr/lib/postgresql")
"""Where Debian and Ubuntu install PostgreSQL's programs, one directory for each version."""
_RETRY_S = 0.1
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_DISK_FULL = "53100"
_NOT_PERMITTED = "42501"
_UNKNOWN_OPTION = "invalid connection option"
"""What the client library says of a parameter of the URL that it does not know."""
_BUSY = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "53200": "out of memory",
    "53300": "too many connections",
    "55P03": "lock not available",
    "57014": "query cancelled",
}


class Postgresql:
    """Writers wait for a row, not for each other.

    They run at `READ COMMITTED`, so each statement sees what was committed before it.
    """

    kind: ClassVar[Kind] = "postgresql"
    read_only: Mapping[str, Any] = {
        "isolation_level": "REPEATABLE READ",
        "postgresql_readonly": True,
    }

    def __init__(self, url: URL, busy_timeout_s: float, kept_connections: int) -> None:
        self.file: Path | None = None
        self._where = _place_of(url)
        self._busy_timeout_s = busy_timeout_s
        self.engine = make_engine(
            url.set(drivername="postgresql+psycopg"), busy_timeout_s, kept_connections
        )

    def commit(self, session: Session) -> None:
        """Commit. If the connection is lost meanwhile, ask the server on another one if it did."""
        session.flush()
        receipt = session.scalar(text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)"))
        try:
            session.commit()
        except DBAPIError as error:
            if receipt is None or not error.connection_invalidated:
                raise  # nothing was done: the server refused, or there was nothing to commit
            committed = self._has_committed(receipt)
            if committed is None:
                raise OutcomeUnknownError(
                    "The connection to the database was lost while the change was being saved, so "
                    "it may or may not have been made. Check before you send the request again."
                ) from error
            if not committed:
                raise

    def version(self) -> int | None:
        return None  # asking the server takes as long as the work that the answer would save

    def ask_version(self) -> str | None:
        """Ask which transactions have ended: those that write, in every database of the server."""
        engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            return connection.scalar(text("SELECT CAST(pg_current_snapshot() AS text)"))

    def dispose(self) -> None:
        """Close every connection; one that a thread still uses, as soon as it is returned."""
        close_returned(self.engine)

    def as_expected_error(self, error: SQLAlchemyError) -> ServiceError | OperatorError | None:
        state = getattr(getattr(error, "orig", None), "sqlstate", None)
        if isinstance(error, PoolTimeoutError) or state in _BUSY:
            return busy()
        if not isinstance(error, DBAPIError):
            return None
        if state == _DISK_FULL:
            return full()
        if state == _NOT_PERMITTED or _UNKNOWN_OPTION in reason_of(error):
            return DatabaseUnusableError(
                f"The database at {self._where}: {reason_of(error)}. Correct TUNERY_DATABASE_URL, "
                "or make its role the owner of the database: see docs/deployment.md."
            )
        # The client library has no code for a connection that it cannot make or has lost. The
        # server gives a reason when it ends a connection.
        has_no_code = state is None and isinstance(error, OperationalError)
        if has_no_code or error.connection_invalidated:
            return away(self._where, reason_of(error))
        return None

    def lock_names(self, session: Session, *names: str) -> None:
        digest = hashlib.sha256("\0".join(names).encode()).digest()
        number = int.from_bytes(digest[:8], signed=True)
        session.execute(select(func.pg_advisory_xact_lock(number)))

    @contextlib.contextmanager
    def migrating(self) -> Generator[Transaction]:
        """Limit only the wait for a table, as elsewhere, not the duration of the migration."""
        with self.engine.begin() as connection:
            allow_silence(connection)
            usual = connection.scalar(text("SHOW lock_timeout"))
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{usual}'"))
            yield connection

    def now(self, session: Session) -> datetime | None:
        return session.scalar(select(func.clock_timestamp(type_=UtcDateTime())))

    def describe(self, session: Session) -> Description:
        version = session.execute(text("SHOW server_version")).scalar_one()
        return Description(f"PostgreSQL {version}")

    def find_damage(self, session: Session) -> list[str]:
        return []  # the server checks its files itself, and has no such command

    def log_bytes(self) -> int | None:
        return None

    def hold_snapshot(self, session: Session) -> None:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        allow_silence(session.connection())

    def copy_to(self, target: Path, session: Session) -> None:
        name = session.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        arguments = ["--format=custom", "--no-owner", f"--snapshot={name}", f"--file={target}"]
        self._run_program("pg_dump", arguments)

    def load_dump(self, source: Path, *, replace: bool) -> None:
        if not replace:
            options = ["--single-transaction", "--exit-on-error", "--no-owner"]
            self._run_program("pg_restore", [*options, str(source)])
            return
        # `pg_restore --clean` drops only the tables that the dump names. Tables of a newer schema
        # would stay, and would be in the way of the older schema's.
        names = ", ".join(f'"{name}"' for name in inspect(self.engine).get_table_names())
        drop = [f"--command=DROP TABLE {names} CASCADE"] if names else []
        with tempfile.TemporaryDirectory(prefix="tunery-restore-") as directory:
            script = f"{directory}/script.sql"  # complete before it is run: psql commits at its end
            dump = ["--no-owner", f"--file={script}", str(source)]
            self._run_program("pg_restore", dump, connects=False)
            options = ["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"]
            self._run_program("psql", [*options, *drop, f"--file={script}"])

    def _run_program(self, name: str, arguments: list[str], *, connects: bool = True) -> None:
        """Run one of PostgreSQL's programs, on the database unless it does not connect."""
        url = self.engine.url
        address = url._replace(drivername="postgresql", password=None).render_as_string()
        target = [f"--dbname={address}"] if connects else []
        environment = dict(os.environ)
        if url.password is not None:
            environment["PGPASSWORD"] = str(url.password)  # every user can see the arguments
        done = subprocess.run(  # noqa: S603 - PostgreSQL's own program
            [_find_program(name), *target, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SnapshotError(f"{name} failed: {done.stderr.strip()[:1000]}")

    def _has_committed(self, receipt: str) -> bool | None:
        """Ask whether a commit was done. None: no answer in time, or the server cannot tell."""
        query = text("SELECT pg_xact_status(CAST(:receipt AS xid8))")
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            with contextlib.suppress(OperationalError), self.engine.connect() as connection:
                status = connection.scalar(query, {"receipt": receipt})
                if status != "in progress":  # its process may not have noticed the loss yet
                    return None if status is None else status == "committed"
            if time.monotonic() >= deadline_s:
                return None
            time.sleep(_RETRY_S)


def _place_of(url: URL) -> str:
    """Host, port and name of the database, for people: a URL may hold a password."""
    host = url.host or url.query.get("host", "localhost")
    return f"{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def _find_program(name: str) -> str:
    on_path = shutil.which(name)
    if on_path is not None:
        return on_path
    versions = sorted(_PROGRAMS_DIR.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    if not versions:
        raise SnapshotError(
            f"{name} is neither on the PATH nor below {_PROGRAMS_DIR}. It is in the package "
            "postgresql-client, and must not be older than the server."
        )
    return str(versions[-1])
