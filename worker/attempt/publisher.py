"""Writes what a training process makes to the database: steps, checkpoints, states and the result.

Steps are written in batches. A file's bytes are stored before the rows that point at them. Every
method raises LeaseLostError once the job is no longer this attempt's: its rows are fenced. Bytes
that no row points at stay under keys of their attempt until orphans are collected. They are not
deleted after a failed commit, because the commit may have succeeded and only its confirmation was
lost.
"""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

from app.core.clock import steady_s
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import LeaseRepository, RequestedAction
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.repositories.transitions import settle
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, TunedModel
from app.core.ids import IdPrefix, new_id
from app.core.job import loss_log
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.core.job.training_events import Checkpointed, Finished, Saved, Unresumable
from app.core.manifest import MANIFEST_NAME
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import delete_blobs
from worker.attempt.lease_keeper import LeaseKeeper, Resources
from worker.attempt.signature import sign_checkpoint
from worker.job_directory import JobDirectory, StoredFile, as_file

logger = logging.getLogger(__name__)

RESULT_NAME = "step_metrics.csv"


class StepLog:
    """Steps wait here until they are written. Two threads write them; one of them appends.

    Attributes:
        has_written: whether a step of this attempt is in the database.
    """

    def __init__(self, keeper: LeaseKeeper, resources: Resources) -> None:
        self._keeper = keeper
        self._resources = resources
        self._lock = threading.Lock()
        self._waiting: list[StepMetrics] = []
        self.has_written = False
        self._first_step = self._total_steps = 0
        self._started_s = self._written_s = self._logged_s = steady_s()

    def begin(self, *, after_step: int) -> None:
        """Record that the training process will resume after this step."""
        self._first_step = after_step

    def start(self, *, total_steps: int) -> None:
        """Record that the training process begins its first step now."""
        self._total_steps = total_steps
        self._started_s = steady_s()

    def append(self, row: StepMetrics) -> None:
        with self._lock:
            self._waiting.append(row)

    def flush(self) -> None:
        """Write the waiting steps and their events. Retries while the lease lasts."""
        with self._lock:
            self._write(self._keeper.transact)

    def flush_if_due(self) -> None:
        """Write the waiting steps, unless that was done a moment ago or is being done.

        Raises:
            DatabaseBusyError, StorageFullError: nothing was written; the steps still wait.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if steady_s() - self._written_s >= self._resources.flush_interval_s:
                self._write(self._resources.database.transact)
        finally:
            self._lock.release()

    def _write(self, run: Callable[[Callable[[Session], None]], None]) -> None:
        if not self._waiting:
            return
        self._written_s = steady_s()
        run(self._record)
        self.has_written = True
        last = self._waiting[-1]
        self._waiting = []  # only now: a database that is busy has taken none of them
        self._log_progress(last)

    def _record(self, session: Session) -> None:
        lease, rows, last = self._keeper.lease, self._waiting, self._waiting[-1]
        seconds_per_step = (self._written_s - self._started_s) / (last.step - self._first_step)
        left_s = seconds_per_step * (self._total_steps - last.step)
        now = self._resources.clock()
        LeaseRepository(session).record_steps(
            lease,
            rows,
            tokens_per_second=last.tokens_seen / last.elapsed_s if last.elapsed_s else None,
            estimated_finish_at=now + timedelta(seconds=left_s),
        )
        events = EventRepository(session, lease.project_id)
        for row in filter(self._is_worth_an_event, rows):
            events.add_metrics(lease.job_id, row, total_steps=self._total_steps, now=now)

    def _log_progress(self, last: StepMetrics) -> None:
        if steady_s() - self._logged_s < self._resources.progress_interval_s:
            return
        self._logged_s = steady_s()
        context = {"job_id": self._keeper.lease.job_id, "train_loss": round(last.train_loss, 4)}
        logger.info("step %d/%d", last.step, self._total_steps, extra=context)

    def _is_worth_an_event(self, row: StepMetrics) -> bool:
        is_due = row.step % self._keeper.lease.config.logging_steps == 0
        return is_due or row.step == self._total_steps or row.valid_loss is not None


class Publisher:
    """Publishes what one attempt makes."""

    def __init__(
        self, keeper: LeaseKeeper, job_directory: JobDirectory, resources: Resources
    ) -> None:
        self._keeper = keeper
        self._lease = keeper.lease
        self._job_directory = job_directory
        self._store = resources.store
        self._signing_keys = SigningKeys(resources.settings.signing_dir)
        self._clock = resources.clock

    def publish_checkpoint(self, event: Checkpointed) -> None:
        """Publish a checkpoint and, in the same transaction, the saved state of its step.

        So a job is never resumed before a step whose checkpoint is lost. If an earlier attempt has
        published a checkpoint of the step already, that one is the same and is kept.

        Raises:
            ManifestError: the files are not what the manifest says, or the manifest names other
                inputs than the job has.
            SigningKeyError: the service's key cannot be read.
        """
        checkpoint = self._job_directory.store_directory(self._store, event.directory)
        signature = sign_checkpoint(
            self._store,
            checkpoint,
            step=event.step,
            spec=self._job_directory.spec,
            keys=self._signing_keys,
        )
        checkpoint.append(signature)
        state = self._job_directory.store_directory(self._store, event.state) if event.state else []

        def publish(session: Session) -> list[str]:
            LeaseRepository(session).hold(self._lease)
            unused = self._add_checkpoint(session, event.step, checkpoint)
            return unused + (self._add_state(session, event.step, state) if state else [])

        delete_blobs(self._store, self._keeper.transact(publish))
        if event.state:
            self._job_directory.drop_directory(event.state)

    def publish_state(self, event: Saved) -> None:
        """Publish a state that the job's next attempt can resume from.

        Raises:
            ManifestError: the files are not what the manifest says.
        """
        state = self._job_directory.store_directory(self._store, event.directory)
        unused = self._keeper.transact(lambda session: self._add_state(session, event.step, state))
        delete_blobs(self._store, unused)
        self._job_directory.drop_directory(event.directory)

    def publish_result(self, end: Finished) -> None:
        """Publish the tuned model and the loss log and end the job, all in one transaction.

        If the user has asked to cancel the job meanwhile, it is cancelled and nothing is published.
        """
        lease = self._lease
        log = self._keeper.read(
            lambda session: JobRepository(session, lease.project_id).list_steps(lease.job_id)
        )
        text = "".join(loss_log.csv_lines(log))
        result = self._job_directory.store_text(self._store, RESULT_NAME, text)
        if not self._keeper.transact(lambda session: self._succeed(session, end, result)):
            delete_blobs(self._store, [result.blob_key])

    def drop_state(self, end: Unresumable) -> None:
        """Delete a state that cannot be resumed, and queue the job again."""
        why = f"The state saved at step {end.step} cannot be resumed"

        def drop(session: Session) -> list[str]:
            now = self._clock()
            freed = SavedStateRepository(session, self._lease.project_id).drop(
                self._lease, end.step
            )
            leases = LeaseRepository(session)
            leases.note(self._lease, f"{why}: {end.message}", now=now, level="warn")
            RecoveryRepository(session).release(self._lease, why, now=now)
            return freed

        delete_blobs(self._store, self._keeper.transact(drop))

    def _add_checkpoint(self, session: Session, step: int, stored: list[StoredFile]) -> list[str]:
        """Add the rows of a checkpoint. Returns the keys of files that are not needed."""
        lease, now = self._lease, self._clock()
        checkpoints = CheckpointRepository(session, lease.project_id)
        existing = checkpoints.find_at_step(lease.job_id, step)
        if existing is not None:  # of this attempt: these very files
            return [] if existing.attempt == lease.attempt else [file.blob_key for file in stored]
        jobs = JobRepository(session, lease.project_id)
        # Not always the newest step: after an early stop, the best one is saved.
        (metrics,) = jobs.list_steps(lease.job_id, first=step, last=step)
        (manifest,) = (file for file in stored if file.name == MANIFEST_NAME)
        checkpoints.add(
            Checkpoint(
                id=new_id(IdPrefix.CHECKPOINT),
                job_id=lease.job_id,
                attempt=lease.attempt,
                step=step,
                created_at=now,
                metrics=metrics.model_dump(),
                manifest_sha256=manifest.sha256,
                files=[as_file(file, lease, now=now) for file in stored],
            )
        )
        name = f"{lease.fine_tuned_model}:ckpt-step-{step}"
        LeaseRepository(session).note(lease, f"Checkpoint created at step {step}: {name}", now=now)
        return []

    def _add_state(self, session: Session, step: int, stored: list[StoredFile]) -> list[str]:
        """Add the row of a saved state. Returns the keys of files that are not needed any more."""
        files = {
            file.name: {"key": file.blob_key, "bytes": file.bytes, "sha256": file.sha256}
            for file in stored
        }
        states = SavedStateRepository(session, self._lease.project_id)
        replaced = states.add(self._lease, step, files, now=self._clock())
        in_use = {file.blob_key for file in stored}  # the same state may be published twice
        return [key for key in replaced if key not in in_use]

    def _succeed(self, session: Session, end: Finished, result: StoredFile) -> bool:
        """End the job. Returns False if it was cancelled instead."""
        lease, now = self._lease, self._clock()
        job = LeaseRepository(session).hold(lease)
        if RequestedAction.of(job) is RequestedAction.CANCEL:
            settle(session, job, JobStatus.CANCELLED, now=now)
            return False
        checkpoint = CheckpointRepository(session, lease.project_id).find_at_step(
            lease.job_id, end.step
        )
        if checkpoint is None:
            raise RuntimeError(f"The child finished at step {end.step} without a checkpoint there.")
        file = as_file(result, lease, now=now)
        FileRepository(session, lease.project_id).add(file)
        TunedModelRepository(session, lease.project_id).add(
            TunedModel(
                id=lease.fine_tuned_model,
                job_id=lease.job_id,
                checkpoint_id=checkpoint.id,
                base_model=lease.base_model,
                created_at=now,
            )
        )
        events = EventRepository(session, lease.project_id)
        events.add(lease.job_id, f"New fine-tuned model created: {lease.fine_tuned_model}", now=now)
        job.trained_tokens = end.trained_tokens
        job.result_checkpoint_id, job.result_file_id = checkpoint.id, file.id
        settle(session, job, JobStatus.SUCCEEDED, now=now)
        return True
