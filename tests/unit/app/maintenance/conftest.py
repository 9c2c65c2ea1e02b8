"""A service with something in it, as the commands of its maintenance find it."""

import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.session import Database
from app.core.db.tables import Checkpoint, Job
from app.core.ids import IdPrefix, new_id
from app.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, ManifestFile
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.local import LocalBlobStore
from app.core.storage.privacy import keep_new_files_private
from tests.builders import build_checkpoint, build_file, build_saved_state, put_blob

MIB = 1024 * 1024


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With little ballast, so that tests leave little behind."""
    return settings.model_copy(update={"ballast_bytes": MIB, "min_free_bytes": MIB})


@pytest.fixture
def now() -> datetime:
    return utc_now()


def build_manifest(job: Job, step: int, files: dict[str, bytes], **changes: Any) -> bytes:
    described = {
        name: ManifestFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    values = {"job_id": job.id, "attempt": 1, "step": step, "files": described, "provenance": {}}
    return Manifest(**(values | changes)).model_dump_json().encode()


@pytest.fixture(autouse=True)
def private_umask() -> Iterator[None]:
    """That of every command."""
    before = os.umask(0)
    keep_new_files_private()
    yield
    os.umask(before)


AddCheckpoint = Callable[..., Checkpoint]


@pytest.fixture
def add_checkpoint(database: Database, store: LocalBlobStore, now: datetime) -> AddCheckpoint:
    """Adds a checkpoint of a job, whole and verifiable."""

    def add(
        job: Job, step: int = 1, *, keys: SigningKeys | None = None, **changes: Any
    ) -> Checkpoint:
        files = {"adapter.safetensors": bytes([step]) * 5000}
        files[MANIFEST_NAME] = build_manifest(job, step, dict(files))
        if keys is not None:
            files[SIGNATURE_NAME] = keys.sign(files[MANIFEST_NAME])
        values: dict[str, Any] = {
            "created_at": now,
            "manifest_sha256": hashlib.sha256(files[MANIFEST_NAME]).hexdigest(),
        }
        checkpoint = build_checkpoint(job, step, **(values | changes))
        for name, content in files.items():
            key = f"jobs/{job.id}/attempt-1/step-{step}/{name}"
            put_blob(store, key, content)
            checkpoint.files.append(
                build_file(
                    content,
                    id=new_id(IdPrefix.FILE),
                    filename=name,
                    purpose="fine-tune-results",
                    blob_key=key,
                    job_id=job.id,
                    created_at=now,
                )
            )
        with database.writing() as session:
            CheckpointRepository(session, DEFAULT_PROJECT_ID).add(checkpoint)
        return checkpoint

    return add


AddState = Callable[..., None]


@pytest.fixture
def add_state(database: Database, store: LocalBlobStore, now: datetime) -> AddState:
    """Adds a saved state of a job, whole and verifiable."""

    def add(job: Job, step: int = 1) -> None:
        files = {"state.safetensors": bytes([step]) * 3000}
        files[MANIFEST_NAME] = build_manifest(job, step, dict(files))
        described: dict[str, dict[str, Any]] = {}
        for name, content in files.items():
            key = f"jobs/{job.id}/attempt-1/state-{step}/{name}"
            put_blob(store, key, content)
            digest = hashlib.sha256(content).hexdigest()
            described[name] = {"key": key, "bytes": len(content), "sha256": digest}
        with database.writing() as session:
            session.add(build_saved_state(job.id, step, described, created_at=now))

    return add


def execute(database: Database, statement: str, **values: object) -> None:
    """What no part of the service would do."""
    with database.writing() as session:
        session.execute(text(statement), values)
