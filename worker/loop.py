"""Claim a job, see it through, settle it, ask again. No torch in this process."""

import logging
import threading
from datetime import timedelta

from app.core.base_models import Catalogue
from app.core.clock import Clock, utc_now
from app.core.db.checkpoints import CheckpointRepository
from app.core.db.files import FileRepository
from app.core.db.leases import Lease, LeaseRepository
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError, LeaseLostError
from app.core.settings import Settings
from app.core.storage.base import BlobStore
from worker.attempt import Attempt
from worker.janitor import Janitor
from worker.launcher import Launcher
from worker.workspace import BaseModelMissingError, Workspace

logger = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE_S = 5.0
"""So that what fails again and again does not fill the log."""


class Worker:
    """Runs jobs one at a time until told to stop."""

    def __init__(
        self,
        worker_id: str,
        settings: Settings,
        *,
        database: Database,
        store: BlobStore,
        catalogue: Catalogue,
        launcher: Launcher,
        clock: Clock = utc_now,
    ) -> None:
        self._worker_id = worker_id
        self._settings = settings
        self._database = database
        self._store = store
        self._catalogue = catalogue
        self._launcher = launcher
        self._clock = clock
        self._lease_for = timedelta(seconds=settings.lease_s)
        settings.workers_dir.mkdir(parents=True, exist_ok=True)
        self._alive_file = settings.workers_dir / f"{worker_id}.alive"
        self._janitor = Janitor(database, store, clock=clock)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Take no more jobs, and put the present one back into the queue."""
        self._stopping.set()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    idle_s = self.run_once()
                except DatabaseBusyError:
                    logger.warning("the database is busy; asking again")
                    idle_s = self._settings.poll_interval_s
                except Exception:  # a job it was about is rescued once its lease has run out
                    logger.exception("something failed; going on in a moment")
                    idle_s = PAUSE_AFTER_FAILURE_S
                self._stopping.wait(idle_s)
        finally:
            self._alive_file.unlink(missing_ok=True)

    def run_once(self) -> float:
        """Run at most one job. Returns how long to wait, in seconds, before the next look."""
        self._alive_file.touch()
        self._janitor.run_if_due()
        lease = self._claim()
        if lease is None:
            return self._settings.poll_interval_s
        context = {"job_id": lease.job_id, "attempt": lease.attempt}
        logger.info("job claimed", extra=context)
        workspace = Workspace(self._settings.work_dir, lease)
        try:
            self._run(lease, workspace)
        except LeaseLostError:
            logger.warning("lease lost; nothing more was written", extra=context)
        finally:
            workspace.remove()
        logger.info("job left", extra=context)
        return 0.0

    def _claim(self) -> Lease | None:
        with self._database.writing() as session:
            lease = LeaseRepository(session).claim(
                worker_id=self._worker_id, now=self._clock(), lease_for=self._lease_for
            )
            if lease is None:
                return None
            checkpoints = CheckpointRepository(session, lease.project_id)
            stale = checkpoints.delete_of_older_attempts(lease.job_id, lease.attempt)
        for key in stale:
            self._store.delete(key)
        return lease

    def _run(self, lease: Lease, workspace: Workspace) -> None:
        attempt = Attempt(
            lease,
            workspace,
            database=self._database,
            store=self._store,
            clock=self._clock,
            lease_for=self._lease_for,
            is_stopping=self._stopping.is_set,
        )
        try:
            self._fill(lease, workspace)
            ending = self._launcher.run(
                workspace.directory,
                on_event=attempt.on_event,
                tick=lambda: self._tick(attempt),
            )
            attempt.settle(ending)
        except LeaseLostError:
            raise
        except BaseModelMissingError:
            attempt.fail(
                code="model_not_available",
                message=f"The base model {lease.base_model} is not installed any more. Install it "
                f"with 'make model MODEL={lease.base_model}' and create the job again.",
            )
        except Exception as error:
            logger.exception("attempt failed", extra={"job_id": lease.job_id})
            attempt.fail(
                code="internal_error",
                message=f"The worker failed on this job: {error!r:.500}. Its log says more.",
            )

    def _tick(self, attempt: Attempt) -> bool:
        self._alive_file.touch()
        return attempt.tick()

    def _fill(self, lease: Lease, workspace: Workspace) -> None:
        with self._database.reading() as session:
            files = FileRepository(session, lease.project_id)
            training_file = files.get_for_job(lease.training_file_id)
            validation_file = (
                files.get_for_job(lease.validation_file_id) if lease.validation_file_id else None
            )
        workspace.fill(
            self._store,
            self._catalogue,
            training_file=training_file,
            validation_file=validation_file,
            threads=self._settings.training_threads,
        )
