"""The job directory of one attempt: fill it, store what the training process made, delete it.

It is `WORK/JOB/attempt-N/`. The lock of the job, `WORK/JOB.lock`, lies beside the job's directory.
"""

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.core import manifest
from app.core.base_models import Catalogue
from app.core.db.repositories.leases import Lease
from app.core.db.tables import File, SavedState
from app.core.disk import as_storage_full
from app.core.errors import BlobNotFoundError
from app.core.job.artifacts import MANIFEST_NAME
from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    LOSS_LOG_NAME,
    OUTPUT_NAME,
    RESUME_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    BaseModelRef,
    ComputeSettings,
    DatasetRef,
    JobSpec,
)
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.trees import remove_tree
from worker.artifact_size import ROOM_BYTES, largest_artifact
from worker.child_files import ChildDirectory
from worker.launch.locks import JobLock
from worker.launch.sandbox.grants import link_cache
from worker.model_store.installed import check_installed
from worker.stored_file import StoredFile, store_bytes

logger = logging.getLogger(__name__)

_ATTEMPT = "attempt-"

_DYING_S = 5.0
"""How long a training process may hold the lock of its job after it was killed, in seconds. It lets
go of it last, after its memory."""


class BaseModelMissingError(Exception):
    """The base model is not installed any more."""


class BaseModelChangedError(Exception):
    """The base model was reinstalled after the job was created, with other weights."""


@dataclass(frozen=True, slots=True)
class JobInputs:
    """What the database knows of the things that an attempt starts from."""

    training_file: File
    validation_file: File | None = None
    states: Sequence[SavedState] = ()
    """Saved states of the job, newest first."""
    steps: Sequence[StepMetrics] = ()
    """The loss log, at least up to the newest state."""


@dataclass(frozen=True, slots=True)
class StoredDirectory:
    """A checkpoint or a saved state that is in the store, as its manifest says."""

    key: str
    """What the keys of all its files begin with, without the slash."""
    files: list[StoredFile]
    promised: manifest.Manifest
    """The manifest as it was read."""
    manifest_bytes: bytes


class JobDirectory:
    """The directory that holds all that a training process sees.

    Attributes:
        spec: the job, set by `fill`. The training process may have changed the file of it since.
    """

    def __init__(self, root: Path, lease: Lease) -> None:
        self._lease = lease
        self.spec: JobSpec
        self.directory = root / lease.job_id / f"{_ATTEMPT}{lease.attempt}"
        self._max_artifact_bytes = ROOM_BYTES

    def fill(
        self, inputs: JobInputs, store: BlobStore, catalogue: Catalogue, settings: Settings
    ) -> int:
        """Make the directory, with everything that the training process needs.

        Returns:
            The step after which training resumes; 0 if it starts from the beginning.

        Raises:
            BaseModelMissingError: the base model is not installed.
            BaseModelChangedError: the base model has other weights than when the job was created.
            RefusedModelError: a file of the base model was changed, or may not be used.
            BlobNotFoundError: the store has lost a data file.
        """
        base_model = self._find_base_model(catalogue)
        self._make()
        _copy_blob(store, inputs.training_file.blob_key, self.directory / TRAINING_DATA_NAME)
        if inputs.validation_file is not None:
            validation_data = self.directory / VALIDATION_DATA_NAME
            _copy_blob(store, inputs.validation_file.blob_key, validation_data)
        model = catalogue.directory(base_model.id).resolve()
        self._max_artifact_bytes = largest_artifact(
            model,
            rank=self._lease.config.lora.saved_rank,
            has_embeddings=bool(self._lease.config.lora.modules_to_save),
            total_steps=self._lease.config.max_total_steps(inputs.training_file.examples or 0),
        )
        (self.directory / BASE_MODEL_NAME).symlink_to(model)
        for name, cache in settings.caches_of(self._lease.project_id).items():
            link_cache(self.directory / name, cache)
        state = self._put_newest_state(inputs, store)
        self._write_spec(inputs, base_model, state, settings)
        return state.step if state is not None else 0

    def _find_base_model(self, catalogue: Catalogue) -> BaseModelRef:
        entry = catalogue.find(self._lease.base_model)
        installed = entry and catalogue.find_installed(entry.id)
        if installed is None:
            raise BaseModelMissingError(self._lease.base_model)
        if self._lease.base_model_sha256 not in {None, installed.sha256}:
            raise BaseModelChangedError(self._lease.base_model)
        check_installed(catalogue.directory(installed.id), installed)
        return BaseModelRef(**installed.model_dump(include=set(BaseModelRef.model_fields)))

    def _make(self) -> None:
        """Make the directory, and delete those of this attempt and of earlier ones.

        Directories of later attempts stay: this worker may have been suspended meanwhile.
        """
        for directory in self.directory.parent.glob(f"{_ATTEMPT}*"):
            number = directory.name.removeprefix(_ATTEMPT)
            if number.isdecimal() and int(number) <= self._lease.attempt:
                remove_tree(directory.parent, directory.name)
        while True:
            try:
                (self.directory / OUTPUT_NAME).mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:  # another attempt has just removed the parent directory
                continue
            return

    def _put_newest_state(self, inputs: JobInputs, store: BlobStore) -> SavedState | None:
        """Copy the newest undamaged state, with the loss log up to it, into the directory."""
        for state in inputs.states:
            try:
                self._put_state(store, state)
            except (manifest.ManifestError, BlobNotFoundError, OSError) as error:
                if isinstance(error, OSError) and as_storage_full(error) is not None:
                    raise
                logger.warning("state skipped: %s", error, extra={"job_id": self._lease.job_id})
                continue
            with (self.directory / LOSS_LOG_NAME).open("x", encoding="utf-8") as log:
                rows = (row for row in inputs.steps if row.step <= state.step)
                log.writelines(row.model_dump_json() + "\n" for row in rows)
            return state
        return None

    def _put_state(self, store: BlobStore, state: SavedState) -> None:
        directory = self.directory / RESUME_NAME
        remove_tree(self.directory, RESUME_NAME)  # a newer state, which was damaged
        directory.mkdir()
        for name, file in state.files.items():
            _copy_blob(store, file["key"], directory / name)
            if manifest.sha256_of(directory / name) != file["sha256"]:
                raise manifest.ManifestError(f"step {state.step}: {name} has changed")
        promised = manifest.verify(directory)
        saved_by = state.saved_by or self._lease.job_id
        if (promised.job_id, promised.step) != (saved_by, state.step):
            raise manifest.ManifestError(f"step {state.step}: the state is of another job or step")

    def _write_spec(
        self,
        inputs: JobInputs,
        base_model: BaseModelRef,
        state: SavedState | None,
        settings: Settings,
    ) -> None:
        self.spec = JobSpec(
            job_id=self._lease.job_id,
            attempt=self._lease.attempt,
            fine_tuned_model=self._lease.fine_tuned_model,
            base_model=base_model,
            training_file=_reference(inputs.training_file),
            validation_file=inputs.validation_file and _reference(inputs.validation_file),
            config=self._lease.config,
            threads=settings.resolved_training_threads,
            compute=_compute_settings(settings),
            save_interval_s=settings.save_interval_s,
            resume_step=state and state.step,
            resume_job_id=state and state.saved_by,
        )
        with (self.directory / JOB_SPEC_NAME).open("x", encoding="utf-8") as target:
            target.write(self.spec.model_dump_json(indent=2))

    def store_directory(self, store: BlobStore, name: str, *, step: int) -> StoredDirectory:
        """Copy a checkpoint or a state into the store, under keys of this attempt, and verify it.

        Raises:
            manifest.ManifestError: the files are not what the manifest says, or are no files that
                a training process may make.
        """
        key = f"{self._blob_prefix}/{Path(name).name}"
        with ChildDirectory.open(self.directory, name) as made:
            left_bytes = self._max_artifact_bytes
            names = made.list_files(max_bytes=left_bytes)
            described = b"".join(made.read(MANIFEST_NAME, max_bytes=manifest.MAX_BYTES))
            promised = manifest.parse(described)
            stored = [store_bytes(store, f"{key}/{MANIFEST_NAME}", [described])]
            for file_name in names:
                if file_name != MANIFEST_NAME:
                    chunks = made.read(file_name, max_bytes=left_bytes)
                    stored.append(store_bytes(store, f"{key}/{file_name}", chunks))
                    left_bytes -= stored[-1].bytes
        # What is in the store is what counts, so that is what is compared.
        actual = {
            file.name: manifest.ManifestFile(bytes=file.bytes, sha256=file.sha256)
            for file in stored
            if file.name != MANIFEST_NAME
        }
        manifest.check(promised, actual)
        made_by = (promised.job_id, promised.attempt, promised.step)
        if made_by != (self._lease.job_id, self._lease.attempt, step):
            raise manifest.ManifestError(f"{name} is of another job, attempt or step")
        return StoredDirectory(key, stored, promised, described)

    def drop_directory(self, name: str) -> None:
        """Delete what was stored and is not needed here any more."""
        remove_tree(self.directory, name)

    def store_texts(self, store: BlobStore, name: str, texts: Iterable[str]) -> StoredFile:
        """Store a text that this process makes. It never lies where the child can write."""
        return store_bytes(store, f"{self._blob_prefix}/{name}", map(str.encode, texts))

    def remove(self) -> None:
        """Delete the directory."""
        remove_tree(self.directory.parent, self.directory.name)
        try:
            self.directory.parent.rmdir()
        except OSError:
            return  # another attempt's directory is still there
        JobLock.of(self.directory).remove_if_free(within_s=_DYING_S)

    @property
    def _blob_prefix(self) -> str:
        return f"jobs/{self._lease.job_id}/attempt-{self._lease.attempt}"


def _copy_blob(store: BlobStore, key: str, target: Path) -> None:
    with store.open(key) as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy, 1024 * 1024)


_CHOICES = {"auto": None, "always": True, "never": False}


def _compute_settings(settings: Settings) -> ComputeSettings:
    dtype = settings.training_dtype
    device = settings.training_device
    return ComputeSettings(
        device=None if device == "auto" else device,
        forward=None if settings.training_forward == "auto" else settings.training_forward,
        dtype=None if dtype == "auto" else dtype,
        compile=_CHOICES[settings.training_compile],
        gradient_checkpointing=_CHOICES[settings.training_checkpointing],
        micro_batch_tokens=settings.micro_batch_tokens,
    )


def _reference(file: File) -> DatasetRef:
    return DatasetRef(
        file_id=file.id,
        filename=file.filename,
        sha256=file.sha256,
        bytes=file.bytes,
        examples=file.examples or 0,
    )
