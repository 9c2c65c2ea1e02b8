"""What a caller may ask of models. The caller owns the transaction."""

import re
from dataclasses import dataclass
from datetime import datetime

from app.core.base_models import Catalogue, CatalogueEntry, InstalledModel
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, Job, TunedModel
from app.core.errors import InvalidRequestError

InstalledBase = tuple[CatalogueEntry, InstalledModel]

_CHECKPOINT_NAME = re.compile(r"(ft:.+):ckpt-step-([1-9]\d{0,8})", re.ASCII)


@dataclass(frozen=True, slots=True)
class TunedCheckpoint:
    """A checkpoint under a name that can be asked for: the tuned model's, or its own."""

    name: str
    base_model: str
    created_at: datetime
    checkpoint: Checkpoint


def list_models(session: Session, catalogue: Catalogue) -> list[InstalledBase | TunedCheckpoint]:
    """The base models that can be tuned here, then the tuned models, newest first."""
    found: list[InstalledBase | TunedCheckpoint] = []
    for entry in catalogue.entries:
        installed = catalogue.find_installed(entry.id)
        if installed is not None:
            found.append((entry, installed))
    return found + [_tuned(model) for model in TunedModelRepository(session).list_all()]


def get_model(session: Session, catalogue: Catalogue, name: str) -> InstalledBase | TunedCheckpoint:
    """The model of this name.

    Raises:
        NotFoundError: no tuned model, no checkpoint and no installed base model has it.
    """
    entry = catalogue.find(name)
    installed = None if entry is None else catalogue.find_installed(entry.id)
    if entry is not None and installed is not None:
        return entry, installed
    named = _find_checkpoint(session, name)
    if named is not None:
        checkpoint, job = named
        return TunedCheckpoint(name, job.base_model, checkpoint.created_at, checkpoint)
    return _tuned(TunedModelRepository(session).get(name))


def delete_model(session: Session, catalogue: Catalogue, name: str) -> list[str]:
    """Forget a tuned model and its adapter; its job, the log and earlier checkpoints stay.

    Returns:
        The keys of the blobs to free once the transaction is committed.

    Raises:
        NotFoundError: no tuned model has this name.
        InvalidRequestError: it is a base model, or one checkpoint of a job.
    """
    if catalogue.find(name) is not None:
        raise InvalidRequestError(
            f"{name} is a base model; only tuned models can be deleted here.",
            code="model_not_deletable",
            param="model",
        )
    named = _find_checkpoint(session, name)
    if named is not None:
        _, job = named
        raise InvalidRequestError(
            f"{name} is a checkpoint of the job {job.id} and cannot be deleted alone. Delete the "
            f"model {job.fine_tuned_model} to delete the job's result, or the job to delete all of "
            "its checkpoints.",
            code="model_not_deletable",
            param="model",
        )
    models = TunedModelRepository(session)
    model = models.get(name)
    checkpoint = model.checkpoint
    models.delete(model)
    return CheckpointRepository(session).delete(checkpoint)


def _tuned(model: TunedModel) -> TunedCheckpoint:
    return TunedCheckpoint(model.id, model.base_model, model.created_at, model.checkpoint)


def _find_checkpoint(session: Session, name: str) -> tuple[Checkpoint, Job] | None:
    """The checkpoint that has this name, `MODEL:ckpt-step-N`, and its job."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    if match is None:
        return None
    return CheckpointRepository(session).find_of_model(match[1], int(match[2]))
