"""Claim a job, see it through, settle it, ask again. No torch in this process."""

import logging
import threading
from collections.abc import Sequence
from datetime import timedelta

from app.core.base_models import Catalogue
from app.core.clock import Clock, steady_s, utc_now
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.session import Database
from app.core.db.tables import SavedState
from app.core.disk import as_storage_full, has_room
from app.core.errors import (
    BlobNotFoundError,
    DatabaseBusyError,
    LeaseLostError,
    NotFoundError,
    OutcomeUnknownError,
)
from app.core.manifest import ManifestError
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from worker.attempt.attempt import Attempt
from worker.attempt.endings import MAKE_ROOM
from worker.attempt.heartbeat import Heartbeat
from worker.attempt.publisher import Publisher
from worker.identity import this_worker
from worker.janitor import Janitor
from worker.job_directory import BaseModelChangedError, BaseModelMissingError, JobDirectory
from worker.launch.job_lock import JobLockedError
from worker.launch.launcher import Launcher
from worker.presence import Presence
from worker.slots import TrainingSlots

logger = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE_S = 5.0
"""So that what fails again and again does not fill the log."""


LOOK_INTERVAL_S = 0.5
"""Between two looks at what a job's user wants: a cancel may take five seconds."""

SAVING_SHARE = 0.8
"""Of the grace period of a worker that is told to stop: the rest is for storing what was saved."""


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
        self._preload_lock = settings.workers_dir / "preload.lock"
        self._slots = TrainingSlots(settings.workers_dir, settings.concurrency)
        self._janitor = Janitor(settings, database=database, store=store, clock=clock)
        self._stopping = threading.Event()
        self._stop_at_s: float | None = None
        self._presence = Presence(
            this_worker(worker_id), database, clock=clock, is_stopping=self._stopping.is_set
        )

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs; save the present one, unless it must be `at_once`, and put it back."""
        grace_s = 0.0 if at_once else self._settings.stop_grace_s * SAVING_SHARE
        self._stop_at_s = steady_s() + grace_s
        self._stopping.set()

    def run(self) -> None:
        with self._presence:
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

    def run_once(self) -> float:
        """Run at most one job. Returns how long to wait, in seconds, before the next look."""
        self._janitor.run_if_due()
        with self._slots.take() as may_train:
            lease = self._claim() if may_train and has_room(self._settings) else None
            if lease is None:
                if may_train:
                    is_busy = self._slots.is_any_other_taken
                    self._launcher.preload(self._preload_lock, is_busy=is_busy)
                return self._settings.poll_interval_s
            context = {"job_id": lease.job_id, "attempt": lease.attempt}
            logger.info("job claimed", extra=context)
            job_directory = JobDirectory(self._settings.work_dir, lease)
            began_s = steady_s()
            try:
                return self._run(lease, job_directory)
            except LeaseLostError:
                logger.warning("lease lost; nothing more was written", extra=context)
            except OutcomeUnknownError:  # the job has ended, or is rescued once its lease has
                logger.warning("the database was lost in a commit", extra=context)
            finally:
                job_directory.remove()
                self._log_end(lease, seconds=steady_s() - began_s)
            return 0.0

    def _log_end(self, lease: Lease, *, seconds: float) -> None:
        """One line about how an attempt ended, as the database has it."""
        context = {"job_id": lease.job_id, "attempt": lease.attempt, "seconds": round(seconds, 1)}
        try:
            with self._database.reading() as session:
                job = JobRepository(session, lease.project_id).get(lease.job_id)
        except (DatabaseBusyError, NotFoundError) as error:
            logger.warning("attempt ended: %s", error, extra=context)
            return
        context |= {
            "status": job.status.value,
            "code": job.error and job.error["code"],
            "steps": job.trained_steps,
            "total_steps": job.total_steps,
            "train_loss": job.train_loss,
            "valid_loss": job.valid_loss,
            "tokens_per_second": job.tokens_per_second and round(job.tokens_per_second),
        }
        known = {name: value for name, value in context.items() if value is not None}
        logger.info("job ended" if job.status.is_terminal else "attempt ended", extra=known)

    def _claim(self) -> Lease | None:
        with self._database.reading() as session:
            if not JobRepository(session).is_any_queued():
                return None  # without locking writers out just to find nothing
        with self._database.writing() as session:
            return LeaseRepository(session).claim(
                self._worker_id, now=self._clock(), lease_for=self._lease_for
            )

    def _run(self, lease: Lease, job_directory: JobDirectory) -> float:
        """One attempt. Returns how long to wait, in seconds, before the next."""
        publisher = Publisher(
            lease, job_directory, database=self._database, store=self._store, clock=self._clock
        )
        attempt = Attempt(
            lease,
            publisher,
            database=self._database,
            clock=self._clock,
            lease_for=self._lease_for,
            stop_at_s=lambda: self._stop_at_s,
        )
        with Heartbeat(attempt.beat, interval_s=LOOK_INTERVAL_S):
            try:
                self._train(lease, job_directory, attempt)
            except (LeaseLostError, OutcomeUnknownError):
                raise
            except JobLockedError as error:
                logger.warning("job locked: %s", error, extra={"job_id": lease.job_id})
                attempt.give_up(
                    "Its last training process would not end",
                    "See what keeps it, or restart the machine.",
                )
            except BaseModelMissingError:
                attempt.fail(
                    code="model_not_available",
                    message=f"The base model {lease.base_model} is not installed any more. Install "
                    f"it with 'tunery models install {lease.base_model}' and rerun the job.",
                )
            except BaseModelChangedError:
                attempt.fail(
                    code="base_model_changed",
                    message=f"The base model {lease.base_model} is not the one it was when the job "
                    "was made: its files have another checksum. Create the job again.",
                )
            except Exception as error:
                if isinstance(error, OSError) and as_storage_full(error) is not None:
                    attempt.give_up("The disk is full", MAKE_ROOM)
                else:
                    logger.exception("attempt failed", extra={"job_id": lease.job_id})
                    attempt.fail(
                        code="internal_error",
                        message=f"The worker failed on this job: {error!r:.500}. Its log says "
                        "more.",
                    )
        return PAUSE_AFTER_FAILURE_S if attempt.must_wait else 0.0

    def _train(self, lease: Lease, job_directory: JobDirectory, attempt: Attempt) -> None:
        resume_step = self._fill(lease, job_directory)
        attempt.begin(after_step=resume_step)
        ending = self._launcher.run(
            job_directory.directory, on_event=attempt.on_event, order=attempt.order
        )
        attempt.settle(ending)

    def _fill(self, lease: Lease, job_directory: JobDirectory) -> int:
        """Fill the job directory. Returns the step that the job goes on after, or 0."""
        with self._database.reading() as session:
            files = FileRepository(session, lease.project_id)
            training_file = files.get_for_job(lease.training_file_id)
            validation_file = (
                files.get_for_job(lease.validation_file_id) if lease.validation_file_id else None
            )
            states = SavedStateRepository(session).list_newest(lease.job_id)
        base_model = job_directory.fill(
            self._store,
            self._catalogue,
            training_file=training_file,
            validation_file=validation_file,
        )
        state = self._put_newest_state(lease, job_directory, states)
        job_directory.write_spec(
            base_model,
            training_file=training_file,
            validation_file=validation_file,
            settings=self._settings,
            state=state,
        )
        return state.step if state is not None else 0

    def _put_newest_state(
        self, lease: Lease, job_directory: JobDirectory, states: Sequence[SavedState]
    ) -> SavedState | None:
        """Lay the newest state that is whole into the job directory, if there is one."""
        for state in states:
            try:
                job_directory.put_state(self._store, state)
            except (ManifestError, BlobNotFoundError, OSError) as error:
                if isinstance(error, OSError) and as_storage_full(error) is not None:
                    raise
                logger.warning("state passed over: %s", error, extra={"job_id": lease.job_id})
                continue
            with self._database.reading() as session:
                jobs = JobRepository(session, lease.project_id)
                job_directory.put_loss_log(jobs.list_steps(lease.job_id, last=state.step))
            return state
        return None
