"""The database and its sessions. Import `Session` from here, so that SQL stays in this package."""

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.core.db.backend import Backend, DatabaseUnusableError, Kind, reason_of
from app.core.db.sqlite import Sqlite
from app.core.errors import DatabaseAwayError, OperatorError

if TYPE_CHECKING:
    from app.core.db.postgresql import Postgresql

__all__ = ["Database", "Session"]

T = TypeVar("T")

BUSY_TIMEOUT_S = 15
"""How long a statement waits for another process's write before it gives up."""

KEPT_CONNECTIONS = 5
"""Idle connections that a process keeps at most. By default a server allows 100 in all."""

_BACKEND = "backend"

logger = logging.getLogger(__name__)


class Database:
    """Short transactions on one database, SQLite or PostgreSQL.

    Args:
        url: where the database is.
        busy_timeout_s: how long a statement waits for another process's write, in seconds.
        kept_connections: connections to a server that stay open when they are idle. More are opened
            as they are needed.
    """

    def __init__(
        self,
        url: str,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        kept_connections: int = KEPT_CONNECTIONS,
    ) -> None:
        parsed = _parse(url)
        self.backend: Backend = _backend_of(parsed)(parsed, busy_timeout_s, kept_connections)
        self.engine = self.backend.engine
        read_engine = self.engine.execution_options(**self.backend.read_only)
        info = {_BACKEND: self.backend}
        self._write_factory = sessionmaker(self.engine, expire_on_commit=False, info=info)
        self._read_factory = sessionmaker(read_engine, expire_on_commit=False, info=info)

    @contextmanager
    def writing(self) -> Generator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            DatabaseBusyError: another process held the database for too long, or the database is
                away. Nothing was done.
            StorageFullError: the database's disk is full. Nothing was done.
            OutcomeUnknownError: the connection was lost during the commit, which may have been
                done.
        """
        with self.service_errors(), self._write_factory() as session:
            try:
                yield session
                self.backend.commit(session)
            except BaseException:
                session.rollback()
                raise

    def transact(self, act: Callable[[Session], T]) -> T:
        """The result of `act`, which has run in one transaction that is committed by now.

        Raises:
            DatabaseBusyError: as `writing`, like the other errors.
        """
        with self.writing() as session:
            return act(session)

    def read(self, act: Callable[[Session], T]) -> T:
        """The result of `act`, which sees one consistent view and changes nothing.

        Raises:
            DatabaseBusyError: as `reading`, like the other errors.
        """
        with self.reading() as session:
            return act(session)

    @contextmanager
    def reading(self) -> Generator[Session]:
        """One consistent view. Changes are discarded.

        Raises:
            DatabaseBusyError: see `writing`.
            StorageFullError: see `writing`.
        """
        with self.service_errors(), self._read_factory() as session:
            yield session

    def version(self) -> int | None:
        """A number that changes with every commit of any process; None when it is unknown.

        Returns at once. Call it from one thread only.
        """
        return self.backend.version()

    def ask_version(self) -> str | None:
        """Like `version`, where that is unknown. It may have to ask a server, and to wait for it.

        Raises:
            DatabaseBusyError: the database is busy or away.
        """
        with self.service_errors():
            return self.backend.ask_version()

    def before_flush(self, check: Callable[[Session], None], info: Mapping[str, object]) -> None:
        """Call `check` before a writing session sends changed rows. What it raises undoes them.

        Args:
            check: may ask the session.
            info: what all later writing sessions have in their `info`, besides what they had.
        """
        self._write_factory.configure(info=self._write_factory.kw["info"] | info)

        def listen(session: Session, *_: object) -> None:
            check(session)

        event.listen(self._write_factory, "before_flush", listen)

    def dispose(self) -> None:
        """Close every connection."""
        self.backend.dispose()

    @contextmanager
    def service_errors(self) -> Generator[None]:
        """Turn a refusal of the database into an error that somebody can act on.

        The log says why, unless the error itself does.
        """
        try:
            yield
        except SQLAlchemyError as error:
            meant = self.backend.as_expected_error(error)
            if meant is None:
                raise
            if not isinstance(meant, OperatorError | DatabaseAwayError):
                logger.warning("the database refused", extra={"reason": reason_of(error)})
            raise meant from error


def lock_names(session: Session, *names: str) -> None:
    """Wait for other transactions that lock the same names; lock until this one ends."""
    backend_of(session).lock_names(session, *names)


def backend_of(session: Session) -> Backend:
    """The backend of the database that a session belongs to."""
    return session.info[_BACKEND]


def kind_of(url: str) -> Kind:
    """Kind of the database at a URL, without opening it."""
    return _backend_of(_parse(url)).kind


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:  # they may repeat a part of the password
        raise DatabaseUnusableError(
            "TUNERY_DATABASE_URL is not a valid URL. docs/settings.md has examples; percent-encode "
            "the special characters of a password."
        ) from error


def _backend_of(url: URL) -> "type[Sqlite | Postgresql]":
    name = url.get_backend_name()
    if name == Sqlite.kind:
        return Sqlite
    if name == "postgresql":
        # Its driver takes a quarter of a health check's time, and most services have SQLite.
        from app.core.db.postgresql import Postgresql  # noqa: PLC0415

        return Postgresql
    raise DatabaseUnusableError(f"TUNERY_DATABASE_URL: {name} is neither sqlite nor postgresql.")
