"""The job directory of one attempt: fill it, store what the training process made, delete it.

It is `WORK/JOB/attempt-N/`, or `check-N` for the Nth try to check the data. The lock of the job,
`WORK/JOB.lock`, lies beside the job's directory. An export has `WORK/TASK/export-N/` and a lock of
its own, because its job may train meanwhile; so has a report, in `report-N`.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core import manifest
from app.core.base_models import Catalogue
from app.core.db.repositories.leases import Lease
from app.core.db.tables import File, SavedState
from app.core.disk import as_storage_full
from app.core.errors import BlobNotFoundError
from app.core.job.artifacts import ARTIFACT_NAMES, EXPORT_NAMES, MANIFEST_NAME, TOKEN_FILE_NAMES
from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    LOSS_LOG_NAME,
    OUTPUT_NAME,
    PARENT_NAME,
    RESUME_NAME,
    TOKENS_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    BaseModelRef,
    JobSpec,
    TaskName,
)
from app.core.job.lora_shape import ParentAdapter
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.trees import remove_tree
from worker.artifact_size import ROOM_BYTES, largest_artifact, largest_tokens
from worker.child_files import ChildDirectory
from worker.job_spec import JobInputs, build_spec
from worker.launch.locks import JobLock
from worker.launch.sandbox.grants import link_cache
from worker.model_store.installed import check_installed
from worker.stored_file import StoredFile, copy_checked, copy_data, store_bytes

logger = logging.getLogger(__name__)

_PREFIXES: dict[TaskName, str] = {
    "train": "attempt-",
    "check_data": "check-",
    "export_gguf": "export-",
    "export_merged": "export-",
    "report": "report-",
}
"""What the name of a directory begins with, before the number of the attempt."""

_ALLOWED_NAMES: dict[TaskName, frozenset[str]] = {
    "train": ARTIFACT_NAMES,
    "check_data": TOKEN_FILE_NAMES,
    "export_gguf": EXPORT_NAMES,
    "export_merged": EXPORT_NAMES,
}
"""Names of the files that the child may make. A report makes none."""

_DYING_S = 5.0
"""How long a training process may hold the lock of its job after it was killed, in seconds. It lets
go of it last, after its memory."""


class BaseModelMissingError(Exception):
    """The base model is not installed any more."""


class BaseModelChangedError(Exception):
    """The base model was reinstalled after the job was created, with other weights."""


class ParentLostError(Exception):
    """The adapter that the job continues is not in the store as it was."""


@dataclass(frozen=True, slots=True)
class StoredDirectory:
    """What the child made, in the store, as its manifest says."""

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

    Args:
        task_id: id of the task, for an export or a report.
    """

    def __init__(
        self, root: Path, lease: Lease, task: TaskName = "train", *, task_id: str | None = None
    ) -> None:
        self._lease = lease
        self._task: TaskName = task
        self.spec: JobSpec
        name = f"{_PREFIXES[task]}{lease.attempt}"
        self.directory = root / (task_id or lease.job_id) / name
        self._blob_prefix = "/".join(filter(None, ("jobs", lease.job_id, task_id, name)))
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
            ParentLostError: the adapter that the job continues was changed or lost.
            BlobNotFoundError, DataDamagedError: the store has lost a data file, or its bytes.
        """
        base_model, model = self._find_base_model(catalogue)
        self._make()
        copy_data(store, inputs.training_file, self.directory / TRAINING_DATA_NAME)
        if inputs.validation_file is not None:
            validation_data = self.directory / VALIDATION_DATA_NAME
            copy_data(store, inputs.validation_file, validation_data)
        self._max_artifact_bytes = self._limit_artifacts(model, inputs)
        self._link_shared(model, settings)
        self._put_tokens(inputs.tokens, store)
        state = self._put_newest_state(inputs, store)
        if state is None and self._lease.parent is not None and self._task == "train":
            self._put_parent(self._lease.parent, inputs.parent_weights, store)
        self._put_spec(
            build_spec(self._lease, inputs, base_model, state, settings=settings, task=self._task)
        )
        return state.step if state is not None else 0

    def _link_shared(self, model: Path, settings: Settings) -> None:
        """Link the base model, and the caches that jobs share."""
        (self.directory / BASE_MODEL_NAME).symlink_to(model)
        for name, cache in settings.caches_of(self._lease.project_id).items():
            link_cache(self.directory / name, cache)

    def _put_spec(self, spec: JobSpec) -> None:
        self.spec = spec
        with (self.directory / JOB_SPEC_NAME).open("x", encoding="utf-8") as target:
            target.write(spec.model_dump_json(indent=2))

    def _find_base_model(self, catalogue: Catalogue) -> tuple[BaseModelRef, Path]:
        model_id, sha256 = catalogue.resolve(self._lease.base_model), self._lease.base_model_sha256
        found = catalogue.find_version(model_id, sha256, needs_weights=self._task != "check_data")
        if found is None:
            is_other = catalogue.find_installed(model_id) is not None
            raise (BaseModelChangedError if is_other else BaseModelMissingError)(model_id)
        installed, directory = found
        check_installed(directory, installed)
        fields = installed.model_dump(include=set(BaseModelRef.model_fields))
        return BaseModelRef(**fields), directory.resolve()

    def _limit_artifacts(self, base_model: Path, inputs: JobInputs) -> int:
        if self._task == "check_data":
            files = (inputs.training_file, inputs.validation_file)
            return largest_tokens(sum(file.bytes for file in files if file is not None))
        config = self._lease.config
        total_steps = config.max_total_steps(inputs.training_file.examples or 0)
        return largest_artifact(
            base_model,
            rank=config.lora.saved_rank,
            has_embeddings=bool(config.lora.modules_to_save),
            total_steps=total_steps,
        )

    def _make(self) -> None:
        """Make the directory, and delete those of this attempt and of earlier ones.

        Directories of later attempts stay: this worker may have been suspended meanwhile.
        """
        prefix = _PREFIXES[self._task]
        for directory in self.directory.parent.glob(f"{prefix}*"):
            number = directory.name.removeprefix(prefix)
            if number.isdecimal() and int(number) <= self._lease.attempt:
                remove_tree(directory.parent, directory.name)
        while True:
            try:
                (self.directory / OUTPUT_NAME).mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:  # another attempt has just removed the parent directory
                continue
            return

    def _put_tokens(self, tokens: Mapping[str, Mapping[str, Any]], store: BlobStore) -> None:
        """Copy what the data check has made, if all of it is there and whole.

        Otherwise the training process makes the tokens again.
        """
        if not tokens:
            return
        directory = self.directory / TOKENS_NAME
        directory.mkdir()
        try:
            for name, file in tokens.items():
                copy_checked(store, file["key"], file["sha256"], directory / name)
        except (manifest.ManifestError, BlobNotFoundError) as error:
            logger.warning("tokens skipped: %s", error, extra={"job_id": self._lease.job_id})
            remove_tree(self.directory, TOKENS_NAME)

    def _put_parent(self, parent: ParentAdapter, weights: File | None, store: BlobStore) -> None:
        """Copy the weights of the adapter that the job continues."""
        if weights is None:
            raise ParentLostError(parent.model)
        try:
            copy_checked(store, weights.blob_key, parent.sha256, self.directory / PARENT_NAME)
        except (manifest.ManifestError, BlobNotFoundError) as error:
            raise ParentLostError(parent.model) from error

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
            copy_checked(store, file["key"], file["sha256"], directory / name)
        promised = manifest.verify(directory)
        saved_by = state.saved_by or self._lease.job_id
        if (promised.job_id, promised.step) != (saved_by, state.step):
            raise manifest.ManifestError(f"step {state.step}: the state is of another job or step")

    def store_directory(self, store: BlobStore, name: str, *, step: int) -> StoredDirectory:
        """Copy what the child made into the store, under keys of this attempt, and verify it.

        It is a checkpoint, a state, an export or, with step 0, the tokens of a data check.

        Raises:
            manifest.ManifestError: the files are not what the manifest says, or are no files that
                a training process may make.
        """
        key = f"{self._blob_prefix}/{Path(name).name}"
        with ChildDirectory.open(self.directory, name, _ALLOWED_NAMES[self._task]) as made:
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
