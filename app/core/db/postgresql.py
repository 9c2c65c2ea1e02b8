"""PostgreSQL, by psycopg: many writers, and a server that may be away."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from psycopg import Connection
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import URL, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from app.core.db.backend import away, busy, full
from app.core.errors import OutcomeUnknownError, ServiceError

POOL_SIZE = 5
MAX_CONNECTIONS = 20
"""Of one process, at its busiest; a server allows 100 in all, unless it was told otherwise."""
IDLE_IN_TRANSACTION_S = 60
"""After so long without a statement, the server ends a transaction whose process has frozen."""
CONNECT_TIMEOUT_S = 10
SILENCE_S = 30
"""After so long without an answer to what was sent, a server's machine counts as gone."""

_RETRY_S = 0.1
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_DISK_FULL = "53100"
_BUSY = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "53200": "out of memory",
    "53300": "too many connections",
    "55P03": "lock not available",
    "57014": "query cancelled",
}


class Postgresql:
    """Writers wait for a row, not for each other; `READ COMMITTED`, so each statement sees anew."""

    read_only: Mapping[str, Any] = {
        "isolation_level": "REPEATABLE READ",
        "postgresql_readonly": True,
    }

    def __init__(self, url: URL, busy_timeout_s: float) -> None:
        self._busy_timeout_s = busy_timeout_s
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            isolation_level="READ COMMITTED",
            connect_args=_connect_args(url, busy_timeout_s),
            pool_pre_ping=True,
            pool_size=POOL_SIZE,
            max_overflow=MAX_CONNECTIONS - POOL_SIZE,
            pool_timeout=busy_timeout_s,
        )
        event.listen(self.engine, "connect", _configure)

    def commit(self, session: Session) -> None:
        """Commit; and when the connection is lost in it, ask on another what has become of it."""
        session.flush()
        receipt = session.scalar(text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)"))
        try:
            session.commit()
        except DBAPIError as error:
            if receipt is None or not error.connection_invalidated:
                raise  # nothing to commit, or refused by a server that is there: nothing was done
            committed = self._has_committed(receipt)
            if committed is None:
                raise OutcomeUnknownError(
                    "The connection to the database was lost while the change was being saved, so "
                    "it may have been made or not. Look before you send the request again."
                ) from error
            if not committed:
                raise

    def version(self) -> int | None:
        return None  # a question to the server takes as long as what it would save

    def dispose(self) -> None:
        self.engine.dispose()

    def as_service_error(self, error: SQLAlchemyError) -> ServiceError | None:
        if isinstance(error, PoolTimeoutError):
            return busy()
        if not isinstance(error, DBAPIError):
            return None
        state = getattr(error.orig, "sqlstate", None)
        if state == _DISK_FULL:
            return full()
        if state in _BUSY:
            return busy()
        # The client's library has no code for a connection that it cannot make, or has lost; one
        # that the server ends comes with the reason why.
        has_no_code = state is None and isinstance(error, OperationalError)
        return away() if has_no_code or error.connection_invalidated else None

    def _has_committed(self, receipt: str) -> bool | None:
        """None when the server did not come back in time to say, or has forgotten."""
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


class _TextDumper(StrDumperUnknown):
    """PostgreSQL's texts hold every character but NUL, which the log of a crash may have."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))


def _configure(connection: Connection[Any], _record: Any) -> None:
    connection.adapters.register_dumper(str, _TextDumper)


def _connect_args(url: URL, busy_timeout_s: float) -> dict[str, Any]:
    """Ours, less those that the URL has; of `options`, where both set one, the URL's wins."""
    settings = {
        "lock_timeout": max(1, round(busy_timeout_s * 1000)),  # 0 would be for ever
        "idle_in_transaction_session_timeout": round(IDLE_IN_TRANSACTION_S * 1000),
    }
    ours = {
        "application_name": "tunery",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": SILENCE_S // 2,
        "keepalives_interval": SILENCE_S // 6,
        "keepalives_count": 3,
        "tcp_user_timeout": SILENCE_S * 1000,
    }
    options = [f"-c {name}={value}" for name, value in settings.items()]
    options += [str(url.query["options"])] if "options" in url.query else []
    kept = {name: value for name, value in ours.items() if name not in url.query}
    return kept | {"options": " ".join(options)}
