"""Signs the manifest of a checkpoint with the service's key.

A signature vouches for what the manifest says, and a training process wrote it. So the manifest
that was stored is compared first with what this process itself knows: the stored files, and the
model, data and hyperparameters that the job was given. How the job was computed, and with which
versions, is what the training process reports.
"""

from collections.abc import Sequence

from app.core import manifest
from app.core.job.training_config import JobSpec
from app.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, ManifestError, ManifestFile
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore
from worker.stored_file import StoredFile, store_bytes


def sign_checkpoint(
    store: BlobStore,
    stored: Sequence[StoredFile],
    *,
    step: int,
    spec: JobSpec,
    keys: SigningKeys,
) -> StoredFile:
    """Sign the manifest among the files of a checkpoint, and store the signature beside it.

    Raises:
        ManifestError: the manifest says something that is not so.
        SigningKeyError: the service's key cannot be read.
    """
    by_name = {file.name: file for file in stored}
    if SIGNATURE_NAME in by_name:
        raise ManifestError(f"step {step}: the training process wrote a {SIGNATURE_NAME}")
    listed = by_name[MANIFEST_NAME]
    with store.open(listed.blob_key) as blob:
        content = blob.read()
    promised = manifest.parse(content)
    described = (promised.job_id, promised.attempt, promised.step)
    if described != (spec.job_id, spec.attempt, step):
        raise ManifestError(f"step {step}: the manifest is of another job, attempt or step")
    files = {
        name: ManifestFile(bytes=file.bytes, sha256=file.sha256)
        for name, file in by_name.items()
        if name != MANIFEST_NAME
    }
    manifest.check(promised, files)
    manifest.check_inputs(promised, spec)
    key = listed.blob_key.removesuffix(MANIFEST_NAME) + SIGNATURE_NAME
    return store_bytes(store, key, [keys.sign(content)])
