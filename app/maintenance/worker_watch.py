"""Notes in the database which workers have fallen silent.

Answers of the API depend on the database alone, never on the time. So the time that passes without
a heartbeat has to become a row: every API process looks for it, as the workers may all be dead.
"""

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

from app.core.clock import Clock
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0
"""Pause between two looks, in seconds: as long as that between two heartbeats."""


class WorkerWatch:
    """Looks for silent workers until told to stop."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Generator[None]:
        """Look from a thread of its own while the block runs."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def look(self) -> None:
        """Note the workers that have fallen silent since the last look.

        Raises:
            DatabaseBusyError: nothing was noted.
        """
        now = self._clock()
        with self._database.reading() as session:
            if not WorkerRepository(session).is_any_falling_silent(now=now):
                return  # without keeping writers waiting just to find nothing
        with self._database.writing() as session:
            WorkerRepository(session).note_silent(now=now)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except DatabaseBusyError:
                logger.warning("the database is busy; silent workers are looked for again later")
            except Exception:
                logger.exception("silent workers could not be looked for; trying again later")
            self._stopping.wait(INTERVAL_S)
