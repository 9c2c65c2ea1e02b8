"""Operations on models. The caller owns the transaction."""

from datetime import datetime

from app.core.access import Caller
from app.core.base_models import Catalogue
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.session import Session
from app.core.db.tables import TunedModel
from app.core.errors import InvalidRequestError
from app.core.stored_models.lookup import find_usable, list_usable
from app.schemas.models import ModelCommands, ModelRead
from app.services.adapters.lookup import find_checkpoint
from app.services.adapters.parents import require_unneeded
from app.services.hand_off.serving import commands_of


def list_models(
    session: Session, caller: Caller, catalogue: Catalogue, organization: str
) -> list[ModelRead]:
    """The installed base models, then the tuned models, newest first."""
    base = [ModelRead.of_base(entry, model) for entry, model in list_usable(session, catalogue)]
    tuned = TunedModelRepository(session, caller.project_id).list_all()
    return base + [_tuned(model, organization) for model in tuned]


def get_model(
    session: Session, caller: Caller, catalogue: Catalogue, organization: str, name: str
) -> ModelRead:
    """The model of this name.

    Raises:
        NotFoundError: no tuned model, no checkpoint and no installed base model has it.
    """
    entry = catalogue.find(name)
    installed = None if entry is None else find_usable(session, catalogue, entry.id)
    if entry is not None and installed is not None:
        return ModelRead.of_base(entry, installed)
    named = find_checkpoint(session, caller, name)
    if named is not None:
        checkpoint, job = named
        commands = commands_of(session, job, catalogue)
        return ModelRead.of_tuned(
            name, job, checkpoint, checkpoint.created_at, organization, commands=commands
        )
    model = TunedModelRepository(session, caller.project_id).get(name)
    job = JobRepository(session, caller.project_id).get(model.job_id)
    return _tuned(model, organization, commands_of(session, job, catalogue))


def delete_model(
    session: Session, caller: Caller, catalogue: Catalogue, name: str, *, now: datetime
) -> list[str]:
    """Delete a tuned model and its adapter. Its job, the log and earlier checkpoints stay.

    Returns:
        The keys of the blobs to delete once the transaction is committed.

    Raises:
        NotFoundError: no tuned model has this name.
        InvalidRequestError: it is a base model or a single checkpoint.
        StateConflictError: an unfinished job continues its adapter.
    """
    if catalogue.find(name) is not None:
        raise InvalidRequestError(
            f"{name} is a base model, and only tuned models can be deleted here.",
            code="model_not_deletable",
            param="model",
        )
    named = find_checkpoint(session, caller, name)
    if named is not None:
        _, job = named
        raise InvalidRequestError(
            f"{name} is a checkpoint of the job {job.id} and cannot be deleted alone. Delete the "
            f"model {job.fine_tuned_model} to delete the job's result, or the job to delete all of "
            "its checkpoints.",
            code="model_not_deletable",
            param="model",
        )
    models = TunedModelRepository(session, caller.project_id)
    model = models.get(name)
    checkpoint = model.checkpoint
    require_unneeded(session, caller, f"the adapter of {name}", checkpoint.job_id, checkpoint.id)
    models.delete(model)
    audit.record(session, caller, Action.MODEL_DELETED, model.id, now=now)
    return CheckpointRepository(session, caller.project_id).delete(checkpoint)


def _tuned(
    model: TunedModel, organization: str, commands: ModelCommands | None = None
) -> ModelRead:
    return ModelRead.of_tuned(
        model.id, model, model.checkpoint, model.created_at, organization, commands=commands
    )
