"""/v1/models: base models that can be tuned here, tuned models, and the import of adapters."""

from functools import partial

from fastapi import APIRouter, Request, Response

from app.api.access import PolicyRoute, needs
from app.api.deps import REPLAYED, REPLAYED_HEADER, CallerDep, Now, OriginDep, ResourcesDep
from app.api.multipart import FileField, form_of, receive_and_use
from app.core.access import Scope
from app.core.storage.blob_store import delete_blobs, stored
from app.schemas.models import ModelDeleted, ModelList, ModelRead
from app.services import models as model_service
from app.services.adapters.imports import (
    MAX_SUFFIX,
    checked_adapter,
    content_of,
    find_imported,
    import_once,
)
from app.services.idempotency import IdempotentRequest
from app.services.received_files import ReceivedFile

router = APIRouter(prefix="/models", tags=["models"], route_class=PolicyRoute)


_FORM = form_of(
    {
        "base_model": {"type": "string"},
        "suffix": {"type": "string", "maxLength": MAX_SUFFIX},
        "file": {"type": "string", "contentMediaType": "application/zip"},
    },
    required=["base_model", "file"],
)


@router.post("", openapi_extra=_FORM, responses=REPLAYED_HEADER, dependencies=[needs(Scope.WRITE)])
async def import_model(
    request: Request,
    response: Response,
    origin: OriginDep,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
) -> ModelRead:
    """Import an adapter that was made elsewhere, as a tuned model.

    The file is a zip archive of the folder that `peft` writes, with weights in safetensors. All of
    it is checked against the base model. The model can be downloaded, continued and deleted like
    others.

    The request is safe to repeat with the header `Idempotency-Key`: the same key, file and fields
    make one model.
    """
    settings, store = resources.settings, resources.store
    field = FileField(
        name="file",
        noun="archive",
        max_bytes=settings.max_upload_bytes,
        advice="Leave out what is not the adapter, or raise TUNERY_MAX_UPLOAD_BYTES.",
        is_dataset=False,
    )

    def use(received: ReceivedFile) -> ModelRead:
        content = content_of(received)
        once = partial(
            IdempotentRequest,
            caller=caller,
            origin=origin,
            route="import",
            content=content,
            now=now,
        )
        model = resources.write(lambda session: find_imported(once(session)))
        if model is None:
            resources.require_room(received.bytes)  # the weights are unpacked beside it
            with checked_adapter(received, store, resources.models, settings) as adapter:
                blobs = adapter.blobs()
                with stored(store, blobs):
                    model = resources.write(lambda session: import_once(once(session), adapter))
                if model.is_replay:
                    delete_blobs(store, blobs)
        if model.is_replay:
            response.headers[REPLAYED] = "true"
        return get_model(model.name, caller, resources)

    # Not while the archive arrives: slow clients would keep all others from importing.
    turn = resources.upload_slots.take_import()
    return await receive_and_use(request, field, resources, use, turn=turn)


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
