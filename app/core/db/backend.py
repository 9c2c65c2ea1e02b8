"""Interface to SQLite and PostgreSQL, and the errors that both report in the same words."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.errors import DatabaseBusyError, OperatorError, ServiceError, StorageFullError

Kind = Literal["sqlite", "postgresql"]


class SnapshotError(OperatorError):
    """The database could not be copied or restored. The message says why."""


class BrokenReferenceError(Exception):
    """A migration would leave rows that reference missing rows. It was rolled back."""


@dataclass(frozen=True, slots=True)
class Description:
    """The database program, for people."""

    text: str
    """Name and version, such as `PostgreSQL 17.2`."""
    problem: str = ""
    """What is wrong with this version; empty if nothing is."""
    advice: str = ""
    """How to fix the problem."""


class Backend(Protocol):
    """One kind of database, opened at one URL. Nothing outside its backend asks which kind."""

    kind: ClassVar[Kind]
    """Name of the kind, as a backup records it."""
    engine: Engine
    read_only: Mapping[str, Any]
    """Execution options of a transaction that sees one moment and writes nothing."""
    file: Path | None
    """The file that holds the database; None for a database on a server."""

    def commit(self, session: Session) -> None:
        """Flush and commit.

        Raises:
            OutcomeUnknownError: the connection was lost during the commit, and the server did not
                come back in time to say whether it was done.
        """
        ...

    def version(self) -> int | None:
        """See `Database.version`."""
        ...

    def dispose(self) -> None:
        """Close every connection."""
        ...

    def as_service_error(self, error: SQLAlchemyError) -> ServiceError | None:
        """The error to report to a caller; None when the error is a bug in this service."""
        ...

    def lock_names(self, session: Session, *names: str) -> None:
        """Wait for other transactions that lock the same names; lock until this one ends."""
        ...

    def migrating(self) -> AbstractContextManager[Connection]:
        """A transaction for migrations. It waits until another process has finished its own.

        Raises:
            BrokenReferenceError: rows would reference missing rows.
        """
        ...

    def describe(self, session: Session) -> Description:
        """Name and version of the database program."""
        ...

    def find_damage(self, session: Session) -> list[str]:
        """Problems in the database's own files; empty where the database checks them itself."""
        ...

    def hold_snapshot(self, session: Session) -> None:
        """Let every statement of a new transaction see the same moment, however long it takes."""
        ...

    def copy_to(self, target: Path, session: Session) -> None:
        """Write what a session with `hold_snapshot` sees into the file `target`.

        Raises:
            SnapshotError: it could not be copied.
        """
        ...

    def load_dump(self, source: Path, *, replace: bool) -> None:
        """Restore a dump that `copy_to` has written, in one transaction.

        Args:
            replace: drop all present tables; otherwise the database must be empty.

        Raises:
            SnapshotError: it could not be restored.
        """
        ...


def unavailable(why: Literal["busy", "away"]) -> ServiceError:
    return DatabaseBusyError(
        f"The database is {why}. Nothing was done; send the request again in a moment."
    )


def full() -> ServiceError:
    return StorageFullError("The database's disk is full. Nothing was done; make room on it first.")
