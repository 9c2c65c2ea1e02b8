"""/v1/models: base models that can be tuned here, and tuned models."""

from fastapi import APIRouter

from app.api.deps import ReadDep, ServicesDep
from app.schemas.models import ModelDeleted, ModelLimits, ModelList, ModelRead
from app.services import models as model_service

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(session: ReadDep, services: ServicesDep) -> ModelList:
    """Installed base models, then tuned models, newest first."""
    found = model_service.list_models(session, services.catalogue)
    return ModelList(data=[_read(one, services.settings.organization) for one in found])


# `:path`, because a hub repository has a slash in its name, and clients send it as %2F.
@router.get("/{model:path}")
def get_model(model: str, session: ReadDep, services: ServicesDep) -> ModelRead:
    """One model: a base model by its id, alias or hub repository, or a tuned one by its `ft:` name.

    The name of a tuned model with `:ckpt-step-N` after it is the job's checkpoint at that step.
    """
    found = model_service.get_model(session, services.catalogue, model)
    return _read(found, services.settings.organization)


@router.delete("/{model:path}")
def delete_model(model: str, services: ServicesDep) -> ModelDeleted:
    """Delete a tuned model and its adapter. The job, its log and its other checkpoints stay.

    One checkpoint cannot be deleted by its name.
    """
    blob_keys = services.make_room(
        lambda session: model_service.delete_model(session, services.catalogue, model)
    )
    services.free(blob_keys)
    return ModelDeleted(id=model)


def _read(
    found: model_service.InstalledBase | model_service.TunedCheckpoint, organization: str
) -> ModelRead:
    if isinstance(found, model_service.TunedCheckpoint):
        return ModelRead(
            id=found.name,
            created=int(found.created_at.timestamp()),
            owned_by=organization,
            base_model=found.base_model,
            fine_tuning_job_id=found.checkpoint.job_id,
            checkpoint_id=found.checkpoint.id,
            step_number=found.checkpoint.step,
        )
    entry, installed = found
    return ModelRead(
        id=entry.id,
        created=installed.installed_at,
        owned_by=installed.repo.partition("/")[0],
        aliases=list(entry.aliases),
        repo=installed.repo,
        revision=installed.revision,
        licence=installed.licence,
        limits=ModelLimits(
            context_length=entry.context_length,
            max_lora_rank=entry.max_lora_rank,
            target_modules=list(entry.target_modules),
            supports_tools=entry.supports_tools,
        ),
    )
