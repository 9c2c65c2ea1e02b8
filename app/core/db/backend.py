"""What differs between databases, and the words they share for being of no use at the moment."""

from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.errors import DatabaseBusyError, ServiceError, StorageFullError


class Backend(Protocol):
    """One kind of database, opened at one URL."""

    engine: Engine
    read_only: Mapping[str, Any]
    """Execution options of a transaction that sees one moment and writes nothing."""

    def commit(self, session: Session) -> None:
        """Write everything out and commit.

        Raises:
            OutcomeUnknownError: the database was lost in the commit, and did not come back in time.
        """
        ...

    def version(self) -> int | None:
        """As `Database.version`."""
        ...

    def dispose(self) -> None:
        """Close every connection."""
        ...

    def as_service_error(self, error: SQLAlchemyError) -> ServiceError | None:
        """What a caller is told; None when the error is a fault of ours."""
        ...


def busy() -> ServiceError:
    message = "The database is busy. Nothing was done; send the request again in a moment."
    return DatabaseBusyError(message)


def away() -> ServiceError:
    message = "The database is away. Nothing was done; send the request again in a moment."
    return DatabaseBusyError(message)


def full() -> ServiceError:
    return StorageFullError("The database's disk is full. Nothing was done; make room on it first.")
