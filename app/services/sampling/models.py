"""Finds the model that answers. The caller owns the transaction."""

import hashlib
from dataclasses import dataclass

from app.core.access import Caller
from app.core.base_models import Catalogue, InstalledModel
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, File
from app.core.errors import NotFoundError
from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from app.core.sampling.messages import AdapterRef
from app.core.storage.local_copies import BlobRef
from app.core.stored_models.lookup import find_usable
from app.services.adapters.lookup import get_adapter_of
from app.services.job_inputs import find_base_of

_CHECKSUM_DIGITS = 16
"""Hexadecimal digits of the checksum that a fingerprint begins with."""
_SETUP_DIGITS = 8
"""Hexadecimal digits for the rest of what decides how an adapter answers."""


@dataclass(frozen=True, slots=True)
class SamplingAdapter:
    """The adapter of a tuned model."""

    ref: AdapterRef
    blobs: tuple[BlobRef, BlobRef]
    """Its weights and its configuration."""


@dataclass(frozen=True, slots=True)
class SamplingModel:
    """A model that can answer, as it was when it was looked up."""

    name: str
    """Its name in answers: the id of a base model, whatever it was asked for as."""
    base: InstalledModel
    adapter: SamplingAdapter | None

    @property
    def base_sha256(self) -> str:
        """Checksum of the base model."""
        return self.base.sha256

    @property
    def fingerprint(self) -> str:
        """What answers name as `system_fingerprint`.

        It begins with the checksum of the adapter's weights, so that people can compare it with a
        manifest. The same weights answer differently on another base model or with another
        `lora_alpha`, so both are in it as well.
        """
        if self.adapter is None:
            return f"fp_{self.base_sha256[:_CHECKSUM_DIGITS]}"
        adapter = self.adapter.ref
        setup = hashlib.sha256(f"{self.base_sha256}{adapter.config_sha256}".encode()).hexdigest()
        return f"fp_{adapter.weights_sha256[:_CHECKSUM_DIGITS]}_{setup[:_SETUP_DIGITS]}"


def find_sampling_model(
    session: Session, caller: Caller, catalogue: Catalogue, name: str
) -> SamplingModel:
    """Find a base model, a tuned model or a checkpoint by its name.

    Raises:
        NotFoundError: the project has no such model, and no base model of this name is installed.
        InvalidRequestError: the base model of a tuned model is no longer installed, or its weights
            have changed since.
    """
    entry = catalogue.find(name)
    installed = None if entry is None else find_usable(session, catalogue, entry.id)
    if entry is not None and installed is not None:
        return SamplingModel(entry.id, installed, None)
    checkpoint, job = get_adapter_of(session, caller, name)
    _, installed = find_base_of(session, catalogue, job, f"{name:.200} cannot be asked")
    return SamplingModel(name, installed, _adapter_of(checkpoint, name))


def _adapter_of(checkpoint: Checkpoint, name: str) -> SamplingAdapter:
    files = {file.filename: file for file in checkpoint.files}
    weights, config = (
        _require(files.get(filename), name)
        for filename in (ADAPTER_WEIGHTS_NAME, ADAPTER_CONFIG_NAME)
    )
    return SamplingAdapter(
        AdapterRef(weights_sha256=weights.sha256, config_sha256=config.sha256),
        (BlobRef(weights.blob_key, weights.sha256), BlobRef(config.blob_key, config.sha256)),
    )


def _require(file: File | None, name: str) -> File:
    if file is None:
        raise NotFoundError(
            f"The adapter of {name:.200} is not complete.", code="model_not_found", param="model"
        )
    return file
