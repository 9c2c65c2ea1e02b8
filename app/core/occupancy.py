"""Lock on the data directory, held by every process that uses it.

The kernel releases the lock when the process dies.
"""

import fcntl
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from app.core.clock import utc_now
from app.core.db.inspection import has_tables
from app.core.db.repositories.workers import SILENT_AFTER, WorkerRepository
from app.core.db.session import Database
from app.core.errors import OperatorError
from app.core.settings import Settings

logger = logging.getLogger(__name__)


class OccupiedError(OperatorError):
    """The data directory is in use. The message says by what."""


@contextmanager
def occupied(settings: Settings) -> Generator[None]:
    """Mark the data directory as used. Many processes may do so at once.

    Raises:
        OccupiedError: a backup is being restored into the directory.
        FileNotFoundError: the directory does not exist.
    """
    with _locked(settings, fcntl.LOCK_SH, "A backup is being restored into it."):
        yield


@contextmanager
def alone(settings: Settings) -> Generator[None]:
    """Keep the service from starting while the data directory is replaced.

    Raises:
        OccupiedError: an API or a worker is running.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
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
            return WorkerRepository(session).count_alive(now=utc_now())
    except SQLAlchemyError as error:  # it is old or damaged, and about to be replaced
        logger.warning("the database does not say which workers run: %s", error.args[0])
        return 0
    finally:
        database.dispose()  # its files are moved next


@contextmanager
def _locked(settings: Settings, how: int, otherwise: str) -> Generator[None]:
    descriptor = os.open(settings.data_dir, os.O_RDONLY | os.O_CLOEXEC)
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
