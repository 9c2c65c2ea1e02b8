"""The lock of a base model: one process at a time installs or removes it."""

import fcntl
import logging
from collections.abc import Generator
from contextlib import contextmanager

from app.core.base_models import Catalogue
from app.core.machine import durable

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(catalogue: Catalogue, model_id: str) -> Generator[None]:
    """Hold the lock of a base model; wait while another process has it."""
    directory = catalogue.directory(model_id)
    durable.make_directory(directory.parent)
    # The operating system releases the lock when the process ends.
    with directory.with_name(f".{model_id}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is installing %s; waiting for it", model_id)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
