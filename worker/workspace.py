"""The job directory of one attempt: fill it, take what the child made out of it, delete it."""

import hashlib
import os
import shutil
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from app.core import manifest
from app.core.base_models import Catalogue
from app.core.db.leases import Lease
from app.core.db.models import File
from app.core.ids import IdPrefix, new_id
from app.core.storage.base import BlobStore
from app.core.training_config import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    OUTPUT_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    BaseModelRef,
    DatasetRef,
    JobSpec,
)


class BaseModelMissingError(Exception):
    """The base model was installed when the job was made, and is not any more."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is in the blob store already, and soon in the database."""

    name: str
    blob_key: str
    bytes: int
    sha256: str
    crc32: int


class Workspace:
    """A directory that holds all that a child sees."""

    def __init__(self, root: Path, lease: Lease) -> None:
        self._lease = lease
        self.directory = root / lease.job_id / f"attempt-{lease.attempt}"

    def fill(
        self,
        store: BlobStore,
        catalogue: Catalogue,
        *,
        training_file: File,
        validation_file: File | None,
        threads: int,
    ) -> None:
        """Make the directory, with the data, the base model and what to do with them.

        Raises:
            BaseModelMissingError: the base model is not installed.
            BlobNotFoundError: the store has lost a data set.
        """
        entry = catalogue.find(self._lease.base_model)
        installed = entry and catalogue.find_installed(entry.id)
        if installed is None:
            raise BaseModelMissingError(self._lease.base_model)
        # Of earlier attempts whose worker was killed, too: they may write nothing more.
        shutil.rmtree(self.directory.parent, ignore_errors=True)
        (self.directory / OUTPUT_NAME).mkdir(parents=True)
        _copy_blob(store, training_file.blob_key, self.directory / TRAINING_DATA_NAME)
        if validation_file is not None:
            _copy_blob(store, validation_file.blob_key, self.directory / VALIDATION_DATA_NAME)
        base_model = catalogue.directory(installed.id).resolve()
        (self.directory / BASE_MODEL_NAME).symlink_to(base_model)
        spec = JobSpec(
            job_id=self._lease.job_id,
            attempt=self._lease.attempt,
            fine_tuned_model=self._lease.fine_tuned_model,
            base_model=BaseModelRef(
                id=installed.id,
                repo=installed.repo,
                revision=installed.revision,
                licence=installed.licence,
                sha256=installed.sha256,
            ),
            training_file=_reference(training_file),
            validation_file=validation_file and _reference(validation_file),
            config=self._lease.config,
            threads=threads,
        )
        (self.directory / JOB_SPEC_NAME).write_text(spec.model_dump_json(indent=2))

    def store_checkpoint(self, store: BlobStore, name: str) -> tuple[list[StoredFile], str]:
        """Copy a checkpoint into the store, under keys of this attempt, and verify it.

        Returns:
            The files, and the sha256 of their manifest.

        Raises:
            manifest.ManifestError: it is not what its manifest says.
        """
        directory = self.directory / name
        if directory.resolve() != self.directory.resolve() / name:  # a child's link leads nowhere
            raise manifest.ManifestError(f"{directory.name} is not a directory of its own")
        promised = manifest.read(directory)
        stored = {
            path.name: _store(store, path, f"{self._blob_prefix}/{directory.name}/{path.name}")
            for path in sorted(directory.iterdir())
        }
        # What is in the store is what counts, so that is what is compared.
        found = {
            file.name: manifest.ManifestFile(bytes=file.bytes, sha256=file.sha256)
            for file in stored.values()
            if file.name != manifest.MANIFEST_NAME
        }
        manifest.check(promised, found)
        return list(stored.values()), stored[manifest.MANIFEST_NAME].sha256

    def store_text(self, store: BlobStore, name: str, text: str) -> StoredFile:
        """Put a text that this process made into the store."""
        path = self.directory / name
        path.write_text(text, "utf-8")
        return _store(store, path, f"{self._blob_prefix}/{name}")

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)
        try:
            self.directory.parent.rmdir()
        except OSError:
            return  # another attempt's directory is still there

    @property
    def _blob_prefix(self) -> str:
        return f"jobs/{self._lease.job_id}/attempt-{self._lease.attempt}"


def _copy_blob(store: BlobStore, key: str, target: Path) -> None:
    with store.open(key) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1024 * 1024)


def _reference(file: File) -> DatasetRef:
    return DatasetRef(
        file_id=file.id,
        filename=file.filename,
        sha256=file.sha256,
        bytes=file.bytes,
        examples=file.examples or 0,
    )


def _store(store: BlobStore, path: Path, key: str) -> StoredFile:
    """Copy a file into the store, describing it on the way."""
    sha256, crc32, size = hashlib.sha256(), 0, 0
    scratch = store.scratch_file()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # a child's link leads nowhere
    try:
        with os.fdopen(descriptor, "rb") as source, scratch.open("wb") as copy:
            while chunk := source.read(1024 * 1024):
                copy.write(chunk)
                sha256.update(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                size += len(chunk)
        store.put(key, scratch)
    finally:
        scratch.unlink(missing_ok=True)  # a full disk must not stay full
    return StoredFile(path.name, key, size, sha256.hexdigest(), crc32)


def as_file(stored: StoredFile, lease: Lease, *, now: datetime) -> File:
    """The row that publishes a stored file as a result of its job."""
    return File(
        id=new_id(IdPrefix.FILE),
        project_id=lease.project_id,
        purpose="fine-tune-results",
        filename=stored.name,
        bytes=stored.bytes,
        sha256=stored.sha256,
        crc32=stored.crc32,
        blob_key=stored.blob_key,
        created_at=now,
        job_id=lease.job_id,
    )
