"""Lock on the data directory, held by every process that uses it.

The kernel releases the lock when the process dies.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.core.clock import utc_now
from app.core.db.backend import DatabaseUnusableError
from app.core.db.inspection import has_tables
from app.core.db.migrate import prepare
from app.core.db.repositories.machines.server_clock import server_time
from app.core.db.repositories.workers import SILENT_AFTER, WorkerRepository
from app.core.db.session import Database
from app.core.errors import OperatorError
from app.core.settings import Settings, read_settings

logger = logging.getLogger(__name__)


class OccupiedError(OperatorError):
    """The data directory is in use. The message says by what."""


class DataDirError(OperatorError):
    """The data directory cannot be used. The message says why."""


def make_data_dir(settings: Settings) -> None:
    """Create the data directory, and make sure that this process can write to it.

    Raises:
        DataDirError: it cannot.
    """
    directory = settings.data_dir.absolute()
    obstacle = _make_writable(directory)
    if obstacle:
        raise DataDirError(
            f"{directory} cannot be the data directory: {obstacle}. Set TUNERY_DATA_DIR to a "
            f"directory that the user of this process (uid {os.geteuid()}) may write."
        )


def _make_writable(directory: Path) -> str:
    """Create the directory. Returns what is in the way of writing to it; empty if nothing is."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return str(error.strerror)
    may_write = os.access(directory, os.W_OK | os.X_OK)
    return "" if may_write else os.strerror(errno.EACCES)


@contextmanager
def occupied(settings: Settings) -> Generator[None]:
    """Mark the data directory as used. Many processes may do so at once.

    Raises:
        OccupiedError: a backup is being restored into the directory.
        DataDirError: the directory does not exist.
    """
    with _locked(settings, fcntl.LOCK_SH, "A backup is being restored into it."):
        yield


@contextmanager
def open_database(settings: Settings | None = None) -> Generator[Database]:
    """The database of the service, for a command. The service may run, or never have been started.

    Raises:
        OccupiedError: a backup is being restored into the data directory.
        DataDirError: the data directory cannot be used.
    """
    settings = settings or read_settings()
    make_data_dir(settings)
    with occupied(settings):
        database = Database(settings.resolved_database_url)
        try:
            prepare(database)
            yield database
        finally:
            database.dispose()


@contextmanager
def alone(settings: Settings) -> Generator[None]:
    """Keep the service from starting while the data directory is replaced.

    Raises:
        OccupiedError: an API or a worker is running.
    """
    make_data_dir(settings)
    with _locked(settings, fcntl.LOCK_EX, "The API or a worker runs on it. Stop both first."):
        alive = _count_workers_elsewhere(settings)
        if alive:
            raise OccupiedError(
                f"{settings.data_dir}: {alive} workers were alive less than "
                f"{SILENT_AFTER.total_seconds():.0f} s ago. Stop them first."
            )
        yield


def _count_workers_elsewhere(settings: Settings) -> int:
    """Workers of other machines, whose locks this kernel does not see."""
    database = Database(settings.resolved_database_url)
    try:
        if not has_tables(database):
            return 0
        with database.reading() as session:
            now = server_time(session, local=utc_now())
            return WorkerRepository(session).count_alive(now=now)
    except (SQLAlchemyError, DatabaseUnusableError) as error:  # old or damaged; replaced next
        logger.warning("the database does not say which workers run: %s", error.args[0])
        return 0
    finally:
        database.dispose()  # its files are moved next


@contextmanager
def _locked(settings: Settings, how: int, otherwise: str) -> Generator[None]:
    try:
        descriptor = os.open(settings.data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DataDirError(
            f"{settings.data_dir.absolute()} is no data directory: {error.strerror}. Is "
            "TUNERY_DATA_DIR that of the service, and was it ever started?"
        ) from error
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OccupiedError(f"{settings.data_dir} is in use. {otherwise}") from None
    except OSError as error:  # some network file systems have no locks
        logger.warning("no lock on the data directory: %s", error)
    try:
        yield
    finally:
        os.close(descriptor)
