"""/v1/uploads: files that are sent in parts."""

from datetime import datetime
from functools import partial
from pathlib import Path

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import contextmanager_in_threadpool

from app.api.access import PolicyRoute, needs
from app.api.deps import CallerDep, Now, Resources, ResourcesDep
from app.api.multipart import FileField, form_of, receive_and_use
from app.api.requests import StrictJsonRoute
from app.core.access import Caller, Scope
from app.core.db.repositories.uploads import UploadRepository
from app.core.db.session import Session
from app.core.errors import BlobNotFoundError
from app.core.storage.blob_store import delete_blobs, stored
from app.schemas.uploads import UploadComplete, UploadCreate, UploadPartRead, UploadRead
from app.services import uploads as upload_service
from app.services.received_files import (
    Assembly,
    ReceivedFile,
    assemble,
    check_content,
    lost_bytes,
    scratch_file,
)

router = APIRouter(prefix="/uploads", tags=["uploads"], route_class=StrictJsonRoute)
_parts_router = APIRouter(route_class=PolicyRoute)
"""Routes whose bodies are not JSON."""

_PART = FileField(
    name="data",
    noun="part",
    max_bytes=upload_service.MAX_PART_BYTES,
    advice="Send smaller parts.",
    is_dataset=False,
)
_PART_FORM = form_of(
    {"data": {"type": "string", "contentMediaType": "application/octet-stream"}}, required=["data"]
)


@router.post("", dependencies=[needs(Scope.WRITE)])
def create_upload(
    body: UploadCreate, caller: CallerDep, resources: ResourcesDep, now: Now
) -> UploadRead:
    """Create an upload of a file in parts. It expires unless it is completed within an hour."""
    settings = resources.settings
    return resources.write(
        lambda session: upload_service.create_upload(session, caller, body, settings, now=now)
    )


@router.get("/{upload_id}", dependencies=[needs(Scope.READ)])
def get_upload(upload_id: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> UploadRead:
    """Get an upload and the parts received so far. An interrupted client can then send the rest."""
    return resources.read(
        lambda session: upload_service.read_upload(session, caller, upload_id, now=now)
    )


@_parts_router.post(
    "/{upload_id}/parts", openapi_extra=_PART_FORM, dependencies=[needs(Scope.WRITE)]
)
async def create_part(
    upload_id: str, request: Request, caller: CallerDep, resources: ResourcesDep, now: Now
) -> UploadPartRead:
    """Add a part of at most 64 MiB. The same bytes sent again are answered with the same part.

    Parts can be sent at the same time and in any order. Their order is given as `part_ids` when the
    upload is completed.
    """

    def require_pending(session: Session) -> None:
        upload_service.require_pending(
            UploadRepository(session, caller.project_id).get(upload_id), now=now
        )

    def use(received: ReceivedFile) -> UploadPartRead:
        part = upload_service.build_part(upload_id, received, now=now)
        max_bytes = resources.settings.max_upload_bytes
        add = partial(
            upload_service.add_part, caller=caller, part=part, max_bytes=max_bytes, now=now
        )
        with stored(resources.store, {part.blob_key: received.path}):
            added = resources.write(add)
        if added is not part:
            delete_blobs(resources.store, [part.blob_key])
        return UploadPartRead.model_validate(added)

    await to_thread.run_sync(resources.read, require_pending)  # before a byte of the part is read
    return await receive_and_use(request, _PART, resources, use)


@router.post("/{upload_id}/complete", dependencies=[needs(Scope.WRITE)])
async def complete_upload(
    upload_id: str, body: UploadComplete, caller: CallerDep, resources: ResourcesDep, now: Now
) -> UploadRead:
    """Join the parts into a file, which is checked like any other.

    If the file is refused, the upload stays pending. It can then be completed with its parts in
    another order, or cancelled. A repeated request is answered with the same file.
    """
    slots = resources.upload_slots
    join = partial(_join, upload_id, body, caller, resources, now)
    async with slots.take(), contextmanager_in_threadpool(scratch_file(resources.store)) as scratch:
        joined = await slots.join(join, scratch)
        if joined is not None:
            assembly, received = joined
            received = await slots.check_table(received)
            await to_thread.run_sync(_publish, caller, resources, assembly, received, now)

    def read(session: Session) -> UploadRead:
        return upload_service.read_upload(session, caller, upload_id, now=now)

    return await to_thread.run_sync(resources.read, read)


def _join(
    upload_id: str,
    body: UploadComplete,
    caller: Caller,
    resources: Resources,
    now: datetime,
    scratch: Path,
) -> tuple[Assembly, ReceivedFile] | None:
    """Join the parts at `scratch`, unless the upload has been completed with them already."""

    def plan(session: Session) -> Assembly | None:
        return upload_service.plan_completion(session, caller, upload_id, body.part_ids, now=now)

    assembly = resources.read(plan)
    if assembly is None:
        return None
    try:
        return assembly, assemble(
            resources.store, assembly, scratch, md5=body.md5, require_room=resources.require_room
        )
    except BlobNotFoundError as error:
        if resources.read(plan) is not None:  # the upload has not ended meanwhile
            raise lost_bytes(upload_id) from error
        return None


def _publish(
    caller: Caller, resources: Resources, assembly: Assembly, received: ReceivedFile, now: datetime
) -> None:
    check_content(received.summary)
    file = upload_service.build_completed(assembly, received, now=now)
    finish = partial(
        upload_service.finish_completion, caller=caller, plan=assembly, file=file, now=now
    )
    with stored(resources.store, {file.blob_key: received.path}):
        needless = resources.write(finish)
    delete_blobs(resources.store, needless)


@router.post("/{upload_id}/cancel", dependencies=[needs(Scope.WRITE)])
def cancel_upload(
    upload_id: str, caller: CallerDep, resources: ResourcesDep, now: Now
) -> UploadRead:
    """Cancel a pending upload and delete its parts. Cancelling it again has no further effect."""
    resources.delete(
        lambda session: upload_service.cancel_upload(session, caller, upload_id, now=now)
    )
    return resources.read(
        lambda session: upload_service.read_upload(session, caller, upload_id, now=now)
    )


router.include_router(_parts_router)
