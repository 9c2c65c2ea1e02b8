"""The lock of a base model: one process at a time installs, fetches or removes it."""

import fcntl
import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from app.core.base_models import Catalogue
from app.core.machine import durable

logger = logging.getLogger(__name__)

_LOOK_S = 0.2
"""Interval at which one that waits looks whether the lock is free, in seconds."""


@contextmanager
def exclusive(
    catalogue: Catalogue, model_id: str, wait: Callable[[], None] = lambda: None
) -> Generator[None]:
    """Hold the lock of a base model; wait while another process or thread has it.

    Args:
        catalogue: the base models.
        model_id: id of the base model.
        wait: called now and then while another one has the lock. What it raises ends the wait.
    """
    directory = catalogue.directory(model_id)
    durable.make_directory(directory.parent)
    # The operating system releases the lock when the process ends.
    with directory.with_name(f".{model_id}.lock").open("ab") as lock:
        is_waiting = False
        while not _try(lock.fileno()):
            if not is_waiting:
                logger.info("another process is installing %s; waiting for it", model_id)
                is_waiting = True
            wait()
            time.sleep(_LOOK_S)
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
