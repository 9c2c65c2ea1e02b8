"""Interface to SQLite and PostgreSQL, and the errors that both report in the same words."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.errors import (
    DatabaseAwayError,
    DatabaseBusyError,
    OperatorError,
    ServiceError,
    StorageFullError,
)

Kind = Literal["sqlite", "postgresql"]

_UNAVAILABLE = "The database is {}. Nothing was done; send the request again in a moment."
_MAX_REASON = 300


class SnapshotError(OperatorError):
    """The database could not be copied or restored. The message says why."""


class DatabaseUnusableError(OperatorError):
    """The database is damaged or closed to this process. The message says where and what to do."""


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

    def ask_version(self) -> str | None:
        """See `Database.ask_version`."""
        ...

    def dispose(self) -> None:
        """Close every connection."""
        ...

    def as_expected_error(self, error: SQLAlchemyError) -> ServiceError | OperatorError | None:
        """The error to raise instead; None when the error is a bug in this service.

        A ServiceError says that the caller may try again. An OperatorError says that the database
        cannot be used until an operator acts.
        """
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

    def now(self, session: Session) -> datetime | None:
        """Time of the database's server. None for a database on this machine."""
        ...

    def describe(self, session: Session) -> Description:
        """Name and version of the database program."""
        ...

    def find_damage(self, session: Session) -> list[str]:
        """Problems in the database's own files; empty where the database checks them itself."""
        ...

    def log_bytes(self) -> int | None:
        """Size of the write-ahead log; None where a server keeps it."""
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


def busy() -> ServiceError:
    return DatabaseBusyError(_UNAVAILABLE.format("busy"))


def away(where: str, reason: str) -> ServiceError:
    """Say that the server at an address, which is given without a password, does not answer."""
    return DatabaseAwayError(
        _UNAVAILABLE.format("away"),
        for_operator=f"The database at {where} cannot be reached: {reason}. Start its server, or "
        "correct TUNERY_DATABASE_URL.",
    )


def full() -> ServiceError:
    return StorageFullError("The database's disk is full. Nothing was done; make room on it first.")


def reason_of(error: SQLAlchemyError) -> str:
    """What the driver says, in one line."""
    said = " ".join(str(getattr(error, "orig", error)).split())
    return said[:_MAX_REASON].rstrip(".")
