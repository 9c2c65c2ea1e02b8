"""/v1/models: base models that can be tuned here, and tuned models."""

from fastapi import APIRouter

from app.api.access import PolicyRoute, needs
from app.api.deps import CallerDep, Now, ResourcesDep
from app.core.access import Scope
from app.schemas.models import ModelDeleted, ModelList, ModelRead
from app.services import models as model_service

router = APIRouter(prefix="/models", tags=["models"], route_class=PolicyRoute)


@router.get("", dependencies=[needs(Scope.READ)])
def list_models(caller: CallerDep, resources: ResourcesDep) -> ModelList:
    """List the installed base models, then the tuned models, newest first."""
    catalogue, organization = resources.catalogue, resources.settings.organization
    models = resources.read(
        lambda session: model_service.list_models(session, caller, catalogue, organization)
    )
    return ModelList(data=models)


# `:path`, because a hub repository has a slash in its name, and clients send it as %2F.
@router.get("/{model:path}", dependencies=[needs(Scope.READ)])
def get_model(model: str, caller: CallerDep, resources: ResourcesDep) -> ModelRead:
    """Get a base model by its id, alias or hub repository, or a tuned model by its `ft:` name.

    The name of a tuned model followed by `:ckpt-step-N` means its job's checkpoint at step N.
    """
    catalogue, organization = resources.catalogue, resources.settings.organization
    return resources.read(
        lambda session: model_service.get_model(session, caller, catalogue, organization, model)
    )


@router.delete("/{model:path}", dependencies=[needs(Scope.WRITE)])
def delete_model(model: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> ModelDeleted:
    """Delete a tuned model and its adapter. The job, its log and its other checkpoints stay.

    A single checkpoint cannot be deleted by its name.
    """
    catalogue = resources.catalogue
    resources.delete(
        lambda session: model_service.delete_model(session, caller, catalogue, model, now=now)
    )
    return ModelDeleted(id=model)
