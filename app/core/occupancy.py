"""Use of the data directory, as kernel locks, which a process releases when it dies."""

import fcntl
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager

from app.core.settings import Settings

logger = logging.getLogger(__name__)

WORKER_SILENT_AFTER_S = 30
"""A worker that has not touched its file for so long is not counted."""


class OccupiedError(Exception):
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
    """Keep the service from being started while the data directory is replaced.

    Raises:
        OccupiedError: an API or a worker is running.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with _locked(settings, fcntl.LOCK_EX, "The API or a worker runs on it. Stop both first."):
        alive = count_alive_workers(settings)
        if alive:
            raise OccupiedError(
                f"{settings.data_dir}: {alive} workers were alive less than "
                f"{WORKER_SILENT_AFTER_S} s ago. Stop them first."
            )
        yield


def count_alive_workers(settings: Settings) -> int:
    """Workers that have touched their file lately, on whatever machine they are."""
    since = time.time() - WORKER_SILENT_AFTER_S
    alive = 0
    for path in settings.workers_dir.glob("*.alive"):
        try:
            alive += path.stat().st_mtime >= since
        except FileNotFoundError:
            continue  # that worker has just ended
    return alive


@contextmanager
def _locked(settings: Settings, how: int, otherwise: str) -> Generator[None]:
    descriptor = os.open(settings.data_dir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OccupiedError(f"{settings.data_dir} is in use. {otherwise}") from None
    except OSError as error:  # as on some network file systems
        logger.warning("no lock on the data directory: %s", error)
    try:
        yield
    finally:
        os.close(descriptor)
