"""Engine and sessions. `Session` is imported from here, so that SQL stays in this package."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.core.db.backend import Backend
from app.core.db.postgresql import Postgresql
from app.core.db.sqlite import Sqlite

__all__ = ["Database", "Session"]

T = TypeVar("T")

BUSY_TIMEOUT_S = 15
"""How long a statement waits for another process's write before it gives up."""

logger = logging.getLogger(__name__)


class Database:
    """Short transactions on one database, SQLite or PostgreSQL."""

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._backend = _open(url, busy_timeout_s)
        self.engine = self._backend.engine
        read_engine = self.engine.execution_options(**self._backend.read_only)
        self._write_factory = sessionmaker(self.engine, expire_on_commit=False)
        self._read_factory = sessionmaker(read_engine, expire_on_commit=False)

    @contextmanager
    def writing(self) -> Generator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            DatabaseBusyError: the database is held by others for too long, or away; nothing was
                done.
            StorageFullError: its disk is full; nothing was done.
            OutcomeUnknownError: it was lost in the commit, which may have been done.
        """
        with self.service_errors(), self._write_factory() as session:
            try:
                yield session
                self._backend.commit(session)
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

    @contextmanager
    def reading(self) -> Generator[Session]:
        """One consistent view; what the block changes is thrown away.

        Raises:
            DatabaseBusyError: as above.
            StorageFullError: as above.
        """
        with self.service_errors(), self._read_factory() as session:
            yield session

    def version(self) -> int | None:
        """A number that is another after every commit, whoever makes it.

        Returns at once, from one thread alone; None when it cannot be told.
        """
        return self._backend.version()

    def dispose(self) -> None:
        """Close every connection."""
        self._backend.dispose()

    @contextmanager
    def service_errors(self) -> Generator[None]:
        """Say what the database refuses in words that a caller can act on; log why it did."""
        try:
            yield
        except SQLAlchemyError as error:
            meant = self._backend.as_service_error(error)
            if meant is None:
                raise
            reason = str(getattr(error, "orig", error)).strip()
            logger.warning("the database refused", extra={"reason": reason})
            raise meant from error


def _open(url: str, busy_timeout_s: float) -> Backend:
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            return Sqlite(parsed, busy_timeout_s)
        case "postgresql":
            return Postgresql(parsed, busy_timeout_s)
        case other:
            raise ValueError(f"TUNERY_DATABASE_URL: {other} is neither sqlite nor postgresql.")
