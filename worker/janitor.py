"""Small chores between jobs: put lost jobs back into the queue, free what has expired."""

import logging
import time

from app.core.clock import Clock
from app.core.db.files import FileRepository
from app.core.db.recovery import RecoveryRepository
from app.core.db.saved_states import SavedStateRepository
from app.core.db.session import Database
from app.core.storage.base import BlobStore
from worker.identity import is_alive, this_host

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
        self.delete_saved_states()

    def rescue_jobs(self) -> None:
        """Put jobs whose worker gave no sign of life back into the queue."""
        with self._database.writing() as session:
            recovery = RecoveryRepository(session)
            rescued = recovery.rescue_orphans(this_host(), is_alive, now=self._clock())
            rescued += recovery.rescue_expired(now=self._clock())
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

    def delete_saved_states(self) -> None:
        """Free what jobs that have ended would have gone on from."""
        with self._database.writing() as session:
            keys = SavedStateRepository(session).delete_of_ended(limit=BATCH)
        for key in keys:
            self._store.delete(key)
