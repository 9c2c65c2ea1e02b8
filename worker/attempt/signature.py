"""Signs the manifest of a checkpoint with the service's key.

A signature vouches for what the manifest says, and a training process wrote it. So the manifest is
compared first with what this process itself knows: `JobDirectory` compares it with the stored
files, this module with the model, data and hyperparameters that the job was given. How the job was
computed, and with which versions, is what the training process reports.
"""

from app.core import manifest
from app.core.job.training_config import JobSpec
from app.core.manifest import SIGNATURE_NAME
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore
from worker.job_directory import StoredDirectory
from worker.stored_file import StoredFile, store_bytes


def sign_checkpoint(
    store: BlobStore, checkpoint: StoredDirectory, *, spec: JobSpec, keys: SigningKeys
) -> StoredFile:
    """Sign the manifest of a checkpoint, and store the signature beside it.

    Raises:
        ManifestError: the manifest names other inputs than the job has.
        SigningKeyError: the service's key cannot be read.
    """
    manifest.check_inputs(checkpoint.promised, spec)
    signature = keys.sign(checkpoint.manifest_bytes)
    return store_bytes(store, f"{checkpoint.key}/{SIGNATURE_NAME}", [signature])
