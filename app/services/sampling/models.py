"""Finds the model that answers. The caller owns the transaction."""

from dataclasses import dataclass
from pathlib import Path

from app.core.access import Caller
from app.core.base_models import Catalogue, InstalledModel
from app.core.db.repositories.checkpoints import TunedModelRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, File
from app.core.errors import InvalidRequestError, NotFoundError
from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from app.core.sampling.messages import AdapterRef
from app.services.adapters.lookup import find_checkpoint

TUNED_PREFIX = "ft:"
"""How the name of every tuned model begins."""

_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True)
class SamplingAdapter:
    """The adapter of a tuned model."""

    ref: AdapterRef
    blob_keys: tuple[str, str]
    """Keys of its weights and of its configuration."""


@dataclass(frozen=True, slots=True)
class SamplingModel:
    """A model that can answer, as it was when it was looked up."""

    name: str
    """Its name in answers: the id of a base model, whatever it was asked for as."""
    directory: Path
    """That of the base model, absolute."""
    base_sha256: str
    adapter: SamplingAdapter | None

    @property
    def fingerprint(self) -> str:
        """What answers name as `system_fingerprint`."""
        sha256 = self.adapter.ref.weights_sha256 if self.adapter else self.base_sha256
        return f"fp_{sha256[:_FINGERPRINT_DIGITS]}"


def find_sampling_model(
    session: Session, caller: Caller, catalogue: Catalogue, name: str
) -> SamplingModel:
    """Find a base model, a tuned model or a checkpoint by its name.

    Raises:
        NotFoundError: the project has no such model, and no base model of this name is installed.
        InvalidRequestError: the base model of a tuned model is no longer installed.
    """
    entry = catalogue.find(name)
    installed = None if entry is None else catalogue.find_installed(entry.id)
    if entry is not None and installed is not None:
        return _build(entry.id, catalogue, installed, None)
    base_model, checkpoint = find_adapter(session, caller, name)
    installed = catalogue.find_installed(base_model)
    if installed is None:
        raise InvalidRequestError(
            f"The base model {base_model} of {name:.200} is not installed any more. Its operator "
            f"can install it with 'tunery models install {base_model}'.",
            code="model_not_available",
            param="model",
        )
    return _build(name, catalogue, installed, _adapter_of(checkpoint, name))


def find_adapter(session: Session, caller: Caller, name: str) -> tuple[str, Checkpoint]:
    """The base model and the checkpoint of a tuned model, or of one of its checkpoints.

    Raises:
        NotFoundError: the project has no such model.
    """
    named = find_checkpoint(session, caller, name)
    if named is not None:
        checkpoint, job = named
        return job.base_model, checkpoint
    tuned = TunedModelRepository(session, caller.project_id).get(name)
    return tuned.base_model, tuned.checkpoint


def _build(
    name: str, catalogue: Catalogue, installed: InstalledModel, adapter: SamplingAdapter | None
) -> SamplingModel:
    directory = catalogue.directory(installed.id).absolute()
    return SamplingModel(name, directory, installed.sha256, adapter)


def _adapter_of(checkpoint: Checkpoint, name: str) -> SamplingAdapter:
    files = {file.filename: file for file in checkpoint.files}
    weights, config = (
        _require(files.get(filename), name)
        for filename in (ADAPTER_WEIGHTS_NAME, ADAPTER_CONFIG_NAME)
    )
    return SamplingAdapter(
        AdapterRef(weights_sha256=weights.sha256, config_sha256=config.sha256),
        (weights.blob_key, config.blob_key),
    )


def _require(file: File | None, name: str) -> File:
    if file is None:
        raise NotFoundError(
            f"The adapter of {name:.200} is not complete.", code="model_not_found", param="model"
        )
    return file
