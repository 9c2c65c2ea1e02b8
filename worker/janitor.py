"""Small chores between jobs: put lost jobs back into the queue, free what has expired."""

import logging
import time

from app.core.clock import Clock
from app.core.db.files import FileRepository
from app.core.db.leases import LeaseRepository
from app.core.db.session import Database
from app.core.storage.base import BlobStore

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
BATCH = 100
"""Expired files freed in one go."""


class Janitor:
    def __init__(self, database: Database, store: BlobStore, *, clock: Clock) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._due_s = 0.0

    def run_if_due(self) -> None:
        """Do the chores if the last time was long enough ago."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + INTERVAL_S
        self.rescue_jobs()
        self.delete_expired_files()

    def rescue_jobs(self) -> None:
        """Put jobs whose worker gave no sign of life back into the queue."""
        with self._database.writing() as session:
            rescued = LeaseRepository(session).rescue(now=self._clock())
        for job_id in rescued:
            logger.warning("job rescued", extra={"job_id": job_id})

    def delete_expired_files(self) -> None:
        """Forget files past their `expires_at`, then free their bytes."""
        with self._database.writing() as session:
            files = FileRepository(session)
            expired = files.list_expired(now=self._clock(), limit=BATCH)
            for file in expired:
                files.delete(file)
        for file in expired:
            self._store.delete(file.blob_key)
