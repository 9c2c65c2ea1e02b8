"""Connections to a PostgreSQL server: their limits, and what ends those that lead nowhere."""

import math
import time
from typing import Any

from psycopg import Connection
from psycopg import OperationalError as DriverError
from psycopg.abc import RV, PQGen
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy import Connection as Transaction
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

MAX_CONNECTIONS = 20
"""Connections of one process at most. By default a server allows 100 in all."""
IDLE_IN_TRANSACTION_S = 10
"""Time without a statement after which the server ends a transaction, in seconds: its process is
frozen or cut off. Less than the usual wait for a lock, so that whoever waits for the locks of such
a process gets them."""
CONNECT_TIMEOUT_S = 10
SILENCE_S = 30
"""Time without an answer after which the other side counts as gone, in seconds. Longer than any
wait for a lock. A worker that hears nothing can still renew its lease on another connection."""


def make_engine(url: URL, busy_timeout_s: float, kept_connections: int) -> Engine:
    """Make an engine whose connections wait for a lock for `busy_timeout_s` at most.

    Args:
        url: where the database is, with the driver's name.
        busy_timeout_s: in seconds.
        kept_connections: connections that stay open when they are idle.
    """
    kept = min(kept_connections, MAX_CONNECTIONS)
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        connect_args=_connect_args(url, busy_timeout_s),
        pool_pre_ping=True,
        pool_size=kept,
        max_overflow=MAX_CONNECTIONS - kept,
        pool_timeout=busy_timeout_s,
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "checkin", _limit_silence)
    return engine


def allow_silence(transaction: Transaction) -> None:
    """Let the statements of this transaction take as long as they need."""
    driver = transaction.connection.driver_connection
    assert isinstance(driver, _Connection)  # noqa: S101 - made by `_connect`
    driver.silence_s = math.inf


def close_returned(engine: Engine) -> None:
    """Close every connection; one that a thread still uses, as soon as it is returned."""
    pool = engine.pool
    engine.dispose()
    event.listen(pool, "checkin", _close)


class _Connection(Connection[Any]):
    """Ends itself when the server is silent for too long.

    TCP notices that packets are lost, but not that a proxy or a firewall swallows what they carry.
    """

    silence_s: float = SILENCE_S

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        return super().wait(self._listen(gen), *args, **options)

    def _listen(self, gen: PQGen[RV]) -> PQGen[RV]:
        """Pass on what `gen` waits for. The driver wakes it ten times a second if nothing comes."""
        try:
            wanted, heard_s = next(gen), time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > self.silence_s:
                    self.pgconn.finish()
                    raise DriverError(f"no answer for {self.silence_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


class _TextDumper(StrDumperUnknown):
    """Replaces NUL, which PostgreSQL's texts cannot hold, and which a crash log may contain."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))


def _connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    return _Connection.connect(*arguments, **options)


def _configure(connection: Connection[Any], _record: Any) -> None:
    connection.adapters.register_dumper(str, _TextDumper)


def _limit_silence(connection: _Connection | None, _record: Any) -> None:
    """Undo `allow_silence`. There is no connection if it has been lost."""
    if connection is not None:
        connection.silence_s = SILENCE_S


def _connect_args(url: URL, busy_timeout_s: float) -> dict[str, Any]:
    """Defaults for what the URL does not set. Within `options`, the URL wins as well."""
    keepalives = {
        "keepalives_idle": SILENCE_S // 2,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    settings = {
        "lock_timeout": max(1, round(busy_timeout_s * 1000)),  # 0 would mean no limit
        "idle_in_transaction_session_timeout": round(IDLE_IN_TRANSACTION_S * 1000),
        # The server's side. Otherwise it keeps the connections of a machine that is gone for hours.
        **{f"tcp_{name}": value for name, value in keepalives.items()},
        "tcp_user_timeout": SILENCE_S * 1000,
    }
    defaults = {
        "application_name": "tunery",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": SILENCE_S * 1000,
        **keepalives,
    }
    options = [f"-c {name}={value}" for name, value in settings.items()]
    options += [str(url.query["options"])] if "options" in url.query else []
    missing = {name: value for name, value in defaults.items() if name not in url.query}
    return missing | {"options": " ".join(options)}


def _close(_connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
    entry.invalidate()
