"""Makes public what a training child has made: bytes first, then the rows that point at them.

Every transaction here is fenced: it names the attempt, and LeaseLostError ends it when the job is
no longer that attempt's. Bytes that were stored in vain lie under keys of their own attempt until
orphans are collected. They are not freed here: of a commit whose answer was lost on its way, one
cannot know that it failed, and what it names must stay.
"""

from app.core.clock import Clock
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository, Wish
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.session import Database, Session
from app.core.db.tables import Checkpoint, TunedModel
from app.core.deletion import delete_bytes
from app.core.ids import IdPrefix, new_id
from app.core.job import loss_log
from app.core.job.status import JobStatus
from app.core.job.training_events import Checkpointed, Finished, Saved, Unresumable
from app.core.manifest import MANIFEST_NAME
from app.core.storage.blob_store import BlobStore
from worker.job_directory import JobDirectory, StoredFile, as_file

RESULT_NAME = "step_metrics.csv"


class Publisher:
    """Publishes what one attempt makes."""

    def __init__(
        self,
        lease: Lease,
        job_directory: JobDirectory,
        *,
        database: Database,
        store: BlobStore,
        clock: Clock,
    ) -> None:
        self._lease = lease
        self._job_directory = job_directory
        self._database = database
        self._store = store
        self._clock = clock
        self._stored: dict[str, list[StoredFile]] = {}

    def publish_checkpoint(self, event: Checkpointed) -> None:
        """A checkpoint for the user, and, in the same transaction, the state of its step.

        So no checkpoint is ever beyond the step that the job would be resumed after; one of a
        step that an earlier attempt has published already is the same, and is kept.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
            ManifestError: it is not what its manifest says.
        """
        stored = self._store_directory(event.directory)
        state = self._store_directory(event.state) if event.state else []
        freed: list[str] = []
        with self._database.writing() as session:
            LeaseRepository(session).hold(self._lease)
            if not self._add_checkpoint(session, event.step, stored):
                freed += [file.blob_key for file in stored]
            if state:
                freed += self._add_state(session, event.step, state)
        self._free(freed)
        if event.state:
            self._drop_directory(event.state)

    def publish_state(self, event: Saved) -> None:
        """A state that the job's next attempt can go on from.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
            ManifestError: it is not what its manifest says.
        """
        stored = self._store_directory(event.directory)
        with self._database.writing() as session:
            freed = self._add_state(session, event.step, stored)
        self._free(freed)
        self._drop_directory(event.directory)

    def publish_result(self, end: Finished) -> bool:
        """The tuned model, the loss log and the success of the job, all or nothing.

        Returns:
            False when the user has asked to cancel the job meanwhile: nothing was published.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        with self._database.reading() as session:
            log = JobRepository(session, self._lease.project_id).list_steps(self._lease.job_id)
        text = "".join(loss_log.csv_lines(log))
        result = self._job_directory.store_text(self._store, RESULT_NAME, text)
        now = self._clock()
        with self._database.writing() as session:
            leases = LeaseRepository(session)
            leases.hold(self._lease)
            is_wanted = leases.read_wish(self._lease) is not Wish.CANCEL
            if is_wanted:
                file = as_file(result, self._lease, now=now)
                FileRepository(session, self._lease.project_id).add(file)
                self._succeed(session, end, result_file_id=file.id)
        if not is_wanted:
            self._free([result.blob_key])
        return is_wanted

    def drop_state(self, end: Unresumable) -> None:
        """Forget a state that cannot be gone on from, and put the job back.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        why = f"The state saved after step {end.step} cannot be gone on from"
        with self._database.writing() as session:
            freed = SavedStateRepository(session).drop(self._lease, end.step)
            leases = LeaseRepository(session)
            leases.note(self._lease, f"{why}: {end.message}", now=self._clock(), level="warn")
            RecoveryRepository(session).release(self._lease, why, now=self._clock())
        self._free(freed)

    def abandon(self) -> None:
        """Free all that the child has made and nobody has stored."""
        self._job_directory.remove()

    def _store_directory(self, name: str) -> list[StoredFile]:
        """Once: when a busy database has everything repeated, not the bytes again."""
        if name not in self._stored:
            self._stored[name] = self._job_directory.store_directory(self._store, name)
        return self._stored[name]

    def _drop_directory(self, name: str) -> None:
        self._job_directory.drop_directory(name)
        del self._stored[name]

    def _free(self, keys: list[str]) -> None:
        delete_bytes(self._store, keys)

    def _add_checkpoint(self, session: Session, step: int, stored: list[StoredFile]) -> bool:
        """False when its files are not needed: an earlier attempt has published the same."""
        lease, now = self._lease, self._clock()
        checkpoints = CheckpointRepository(session, lease.project_id)
        existing = checkpoints.find_at_step(lease.job_id, step)
        if existing is not None:
            return existing.attempt == lease.attempt  # then it has just these files
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
        return True

    def _add_state(self, session: Session, step: int, stored: list[StoredFile]) -> list[str]:
        files = {
            file.name: {"key": file.blob_key, "bytes": file.bytes, "sha256": file.sha256}
            for file in stored
        }
        states = SavedStateRepository(session)
        replaced = states.add(self._lease, step, files, now=self._clock())
        kept = {file.blob_key for file in stored}  # written once more after a doubtful commit
        return [key for key in replaced if key not in kept]

    def _succeed(self, session: Session, end: Finished, *, result_file_id: str) -> None:
        lease, now = self._lease, self._clock()
        checkpoint = CheckpointRepository(session, lease.project_id).find_at_step(
            lease.job_id, end.step
        )
        if checkpoint is None:
            raise RuntimeError(f"The child finished at step {end.step} without a checkpoint of it.")
        TunedModelRepository(session, lease.project_id).add(
            TunedModel(
                id=lease.fine_tuned_model,
                job_id=lease.job_id,
                checkpoint_id=checkpoint.id,
                base_model=lease.base_model,
                created_at=now,
            )
        )
        leases = LeaseRepository(session)
        leases.finish(
            lease,
            JobStatus.SUCCEEDED,
            now=now,
            trained_tokens=end.trained_tokens,
            result_checkpoint_id=checkpoint.id,
            result_file_id=result_file_id,
        )
        leases.note(lease, f"New fine-tuned model created: {lease.fine_tuned_model}", now=now)
        leases.note(lease, "The job has successfully completed", now=now)
