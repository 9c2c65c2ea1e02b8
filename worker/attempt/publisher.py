"""Writes what a training process makes to the database: checkpoints, states and the result.

A file's bytes are stored before the rows that point at them. Every method raises LeaseLostError
once the job is no longer this attempt's: its rows are fenced. Bytes that were stored for nothing
lie under keys of their own attempt until orphans are collected. They are not freed after a failed
commit, because it may have succeeded with its confirmation lost.
"""

from app.core import manifest
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import LeaseRepository, RequestedAction
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.repositories.tasks.reports import (
    begin_checkpoint_report,
    begin_report,
    find_validation_data,
)
from app.core.db.repositories.transitions import settle
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, Job, TunedModel
from app.core.ids import IdPrefix, new_id
from app.core.job import loss_log
from app.core.job.artifacts import MANIFEST_NAME
from app.core.job.child.job_spec import OUTPUT_NAME, JobSpec
from app.core.job.child.training_events import (
    Checkpointed,
    Finished,
    ProtocolError,
    Saved,
    Unresumable,
)
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore, delete_blobs
from worker.attempt.attempt_store import AttemptStore
from worker.attempt.lease_keeper import LeaseKeeper, Resources
from worker.job_directory import JobDirectory, StoredDirectory
from worker.stored_file import StoredFile, as_file, store_bytes

RESULT_NAME = "step_metrics.csv"

READ_AT_ONCE = 1000
"""Number of rows of a loss log that are read at once."""


class Publisher:
    """Publishes what one attempt makes."""

    def __init__(
        self, keeper: LeaseKeeper, job_directory: JobDirectory, resources: Resources
    ) -> None:
        self._keeper = keeper
        self._lease = keeper.lease
        self._job_directory = job_directory
        self._store = resources.store
        self._sink = AttemptStore(resources.store, keeper)
        self._signing_keys = SigningKeys(resources.settings.signing_dir)
        self._clock = resources.clock

    def publish_checkpoint(self, event: Checkpointed) -> None:
        """Publish a checkpoint and, in the same transaction, the saved state of its step.

        So a job is never resumed before a step whose checkpoint is lost. If an earlier attempt has
        published a checkpoint of the step already, that one is the same and is kept. Checkpoints
        beyond `keep_checkpoints` are deleted, here and in the job directory.

        Raises:
            ManifestError: the files are not what the manifest says, or the manifest names other
                inputs than the job has.
            SigningKeyError: the service's key cannot be read.
        """
        stored = self._store_directory(event.directory, event.step)
        spec, keys = self._job_directory.spec, self._signing_keys
        signature = sign_checkpoint(self._sink, stored, spec=spec, keys=keys)
        checkpoint = [*stored.files, signature]
        state = self._store_directory(event.state, event.step).files if event.state else []

        def publish(session: Session) -> tuple[list[str], list[int]]:
            job = LeaseRepository(session).hold(self._lease)
            unused = self._add_checkpoint(session, job, event.step, checkpoint)
            freed, steps = self._delete_surplus(session)
            states = self._add_state(session, event.step, state) if state else []
            return unused + freed + states, steps

        keys, deleted_steps = self._keeper.transact(publish)
        delete_blobs(self._store, keys)
        for step in deleted_steps:
            self._job_directory.drop_directory(f"{OUTPUT_NAME}/step-{step}")
        if event.state:
            self._job_directory.drop_directory(event.state)

    def publish_state(self, event: Saved) -> None:
        """Publish a state that the job's next attempt can resume from.

        Raises:
            ManifestError: the files are not what the manifest says.
        """
        state = self._store_directory(event.directory, event.step).files
        unused = self._keeper.transact(lambda session: self._add_state(session, event.step, state))
        delete_blobs(self._store, unused)
        self._job_directory.drop_directory(event.directory)

    def _store_directory(self, name: str, step: int) -> StoredDirectory:
        return self._job_directory.store_directory(self._sink, name, step=step)

    def publish_result(self, end: Finished) -> None:
        """Publish the tuned model and the loss log and end the job, all in one transaction.

        If the user has asked to cancel the job meanwhile, it is cancelled and nothing is published.

        Raises:
            ProtocolError: there is no checkpoint of the step that is the result.
        """
        # Programs written for OpenAI's file expect a training loss in every row: not so step 0.
        batches = loss_log.in_batches(self._read_steps(1), self._read_steps)
        texts = loss_log.csv_texts(batches)
        result = self._job_directory.store_texts(self._sink, RESULT_NAME, texts)
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

    def _read_steps(self, first: int) -> list[StepMetrics]:
        lease = self._lease
        return self._keeper.read(
            lambda session: JobRepository(session, lease.project_id).list_steps(
                lease.job_id, first=first, limit=READ_AT_ONCE
            )
        )

    def _add_checkpoint(
        self, session: Session, job: Job, step: int, stored: list[StoredFile]
    ) -> list[str]:
        """Add the rows of a checkpoint. Returns the keys of files that are not needed."""
        lease, now = self._lease, self._clock()
        checkpoints = CheckpointRepository(session, lease.project_id)
        if checkpoints.find_at_step(lease.job_id, step) is not None:  # an earlier attempt made it
            return [file.blob_key for file in stored]
        jobs = JobRepository(session, lease.project_id)
        # Not always the newest step: after an early stop, the best one is saved.
        (metrics,) = jobs.list_steps(lease.job_id, first=step, last=step)
        (described,) = (file for file in stored if file.name == MANIFEST_NAME)
        checkpoint = Checkpoint(
            id=new_id(IdPrefix.CHECKPOINT),
            job_id=lease.job_id,
            attempt=lease.attempt,
            step=step,
            created_at=now,
            metrics=metrics.model_dump(),
            manifest_sha256=described.sha256,
            files=[as_file(file, lease, now=now) for file in stored],
        )
        checkpoints.add(checkpoint)
        begin_checkpoint_report(session, job, checkpoint.id, now=now)
        name = f"{lease.fine_tuned_model}:ckpt-step-{step}"
        LeaseRepository(session).note(lease, f"Checkpoint created at step {step}: {name}", now=now)
        return []

    def _delete_surplus(self, session: Session) -> tuple[list[str], list[int]]:
        """Delete the rows of surplus checkpoints. Returns the keys of their files and their steps.

        The one that may become the result is never among them: it is the newest, or the best. One
        that another job continues is deleted after a later checkpoint, once that job has ended.
        """
        lease, config = self._lease, self._lease.config
        if config.keep_checkpoints is None:
            return [], []
        checkpoints = CheckpointRepository(session, lease.project_id)
        surplus = checkpoints.list_surplus(
            lease.job_id, keep=config.keep_checkpoints, keeps_best=config.chooses_best
        )
        needed = checkpoints.lock_to_delete(lease.job_id)
        surplus = [checkpoint for checkpoint in surplus if checkpoint.id not in needed]
        steps = [checkpoint.step for checkpoint in surplus]
        keys = [key for checkpoint in surplus for key in checkpoints.delete(checkpoint)]
        for step in steps:
            why = f"keep_checkpoints is {config.keep_checkpoints}"
            message = f"Checkpoint of step {step} deleted: {why}"
            LeaseRepository(session).note(lease, message, now=self._clock())
        return keys, steps

    def _add_state(self, session: Session, step: int, stored: list[StoredFile]) -> list[str]:
        """Add the row of a saved state. Returns the keys of files that are not needed any more."""
        files = {
            file.name: {"key": file.blob_key, "bytes": file.bytes, "sha256": file.sha256}
            for file in stored
        }
        states = SavedStateRepository(session, self._lease.project_id)
        return states.add(self._lease, step, files, now=self._clock())

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
            raise ProtocolError(f"It finished at step {end.step:,} without a checkpoint of it.")
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
        if job.eval_prompts or find_validation_data(session, job) is not None:
            begin_report(session, job, checkpoint.id, job.eval_prompts or (), now=now)
        return True


def sign_checkpoint(
    store: BlobStore, checkpoint: StoredDirectory, *, spec: JobSpec, keys: SigningKeys
) -> StoredFile:
    """Sign the manifest of a checkpoint with the service's key, and store the signature beside it.

    A signature vouches for what the manifest says, and a training process wrote it. So the manifest
    is compared first with what this process itself knows: `JobDirectory` has compared it with the
    stored files, and here it is compared with the model, data and hyperparameters that the job was
    given. How the job was computed, and with which versions, is what the training process reports.

    Raises:
        ManifestError: the manifest names other inputs than the job has.
        SigningKeyError: the service's key cannot be read.
    """
    manifest.check_inputs(checkpoint.promised, spec)
    signature = keys.sign(checkpoint.manifest_bytes)
    return store_bytes(store, f"{checkpoint.key}/{manifest.SIGNATURE_NAME}", [signature])
