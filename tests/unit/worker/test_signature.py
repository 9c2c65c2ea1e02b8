"""What the service signs: only what it knows itself to be so."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.base_models import Catalogue
from app.core.db.session import Database
from app.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, ManifestError, ManifestFile
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, add_job, claim, write_checkpoint
from worker.attempt.publisher import sign_checkpoint
from worker.job_directory import JobDirectory, JobInputs, StoredFile

pytestmark = pytest.mark.only_sqlite


@pytest.fixture
def job_directory(
    settings: Settings, database: Database, store: LocalBlobStore, catalogue: Catalogue
) -> JobDirectory:
    """That of a job with a training file."""
    file = add_file(database, store)
    add_job(database, training_file_id=file.id)
    job_directory = JobDirectory(settings.work_dir, claim(database))
    job_directory.fill(JobInputs(file), store, catalogue, settings)
    return job_directory


@pytest.fixture
def keys(settings: Settings) -> SigningKeys:
    return SigningKeys(settings.signing_dir)


Publish = Callable[[], StoredFile]


@pytest.fixture
def publish(job_directory: JobDirectory, store: LocalBlobStore, keys: SigningKeys) -> Publish:
    """Store and sign the checkpoint of step 3, as it then is."""

    def publish() -> StoredFile:
        stored = job_directory.store_directory(store, "out/step-3", step=3)
        return sign_checkpoint(store, stored, spec=job_directory.spec, keys=keys)

    return publish


def change_provenance(directory: Path, **changes: Any) -> None:
    path = directory / "out/step-3" / MANIFEST_NAME
    content = json.loads(path.read_bytes())
    content["provenance"] |= changes
    path.write_text(json.dumps(content))


def test_the_signature_is_stored_beside_the_manifest(
    job_directory: JobDirectory, publish: Publish, store: LocalBlobStore, keys: SigningKeys
) -> None:
    write_checkpoint(job_directory.directory, 3)

    signature = publish()

    assert signature.name == SIGNATURE_NAME
    with store.open(signature.blob_key) as blob:
        content = blob.read()
    with store.open(signature.blob_key.removesuffix(".sig")) as blob:
        manifest = blob.read()
    assert keys.ensure().has_signed(manifest, content)


@pytest.mark.parametrize(
    "name", ["fine_tuned_model", "base_model", "training_file", "config", "seed"]
)
def test_a_manifest_that_names_other_inputs_than_the_job_has_is_not_signed(
    name: str, job_directory: JobDirectory, publish: Publish
) -> None:
    write_checkpoint(job_directory.directory, 3)
    change_provenance(job_directory.directory, **{name: "another"})

    with pytest.raises(ManifestError, match=f"the manifest has another {name}"):
        publish()


def test_changing_the_description_of_the_job_does_not_help(
    job_directory: JobDirectory, publish: Publish
) -> None:
    spec = job_directory.directory / "job.json"
    text = spec.read_text()
    spec.write_text(text.replace(job_directory.spec.training_file.sha256, "f" * 64))
    assert spec.read_text() != text
    write_checkpoint(job_directory.directory, 3)

    with pytest.raises(ManifestError, match="another training_file"):
        publish()


def test_a_child_cannot_publish_a_signature_of_its_own(
    job_directory: JobDirectory, publish: Publish
) -> None:
    signature = b"s" * 64
    described = ManifestFile(bytes=64, sha256=hashlib.sha256(signature).hexdigest())
    write_checkpoint(job_directory.directory, 3)
    directory = job_directory.directory / "out/step-3"
    (directory / SIGNATURE_NAME).write_bytes(signature)
    content = json.loads((directory / MANIFEST_NAME).read_bytes())
    content["files"][SIGNATURE_NAME] = described.model_dump()
    (directory / MANIFEST_NAME).write_text(json.dumps(content))

    with pytest.raises(ManifestError, match=SIGNATURE_NAME):
        publish()
