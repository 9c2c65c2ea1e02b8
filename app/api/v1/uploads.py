"""/v1/uploads: files that are sent in parts."""

import contextlib
import functools
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request

from app.api.assembly import assemble
from app.api.deps import Now, ReadDep, Services, ServicesDep, WriteDep
from app.api.requests import StrictJsonRoute
from app.api.uploads import FileField, receive_upload
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.uploads import UploadRepository
from app.core.db.session import Session
from app.core.disk import require_room
from app.core.errors import BlobNotFoundError, NotFoundError
from app.schemas.files import FileRead
from app.schemas.uploads import UploadComplete, UploadCreate, UploadPartRead, UploadRead
from app.services import uploads as upload_service
from app.services.files import ReceivedFile, check_content

router = APIRouter(prefix="/uploads", tags=["uploads"], route_class=StrictJsonRoute)
_parts_router = APIRouter()
"""For bodies that are no JSON."""

_PART = FileField(
    name="data",
    noun="part",
    max_bytes=upload_service.MAX_PART_BYTES,
    advice="Send smaller parts.",
    is_data_set=False,
)
_PART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {"type": "string", "contentMediaType": "application/octet-stream"}
                    },
                }
            }
        },
    }
}


@router.post("")
def create_upload(
    body: UploadCreate, session: WriteDep, services: ServicesDep, now: Now
) -> UploadRead:
    """Begin to send a file in parts. An upload that is not completed within an hour expires."""
    max_bytes = services.settings.max_upload_bytes
    upload = upload_service.create_upload(session, body, max_bytes=max_bytes, now=now)
    require_room(services.settings, body.bytes)
    return _read(session, upload.id, now)


@router.get("/{upload_id}")
def get_upload(upload_id: str, session: ReadDep, now: Now) -> UploadRead:
    """An upload, with the parts received so far: a client that was interrupted sends the rest."""
    return _read(session, upload_id, now)


@_parts_router.post("/{upload_id}/parts", openapi_extra=_PART_BODY)
async def create_part(
    upload_id: str, request: Request, services: ServicesDep, now: Now
) -> UploadPartRead:
    """Add a part of at most 64 MiB. The same bytes sent again are answered with the same part.

    Parts may be sent at once and in any order; completion names their order.
    """
    await to_thread.run_sync(_require_pending, services, upload_id, now)
    scratch = services.store.scratch_file()
    try:
        received = await receive_upload(
            request,
            _PART,
            scratch=scratch,
            require_room=functools.partial(require_room, services.settings),
        )
        return await to_thread.run_sync(_add_part, services, upload_id, received, now)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def _require_pending(services: Services, upload_id: str, now: Now) -> None:
    """Before a byte of the part is read."""
    with services.database.reading() as session:
        upload_service.require_pending(UploadRepository(session).get(upload_id), now=now)


def _add_part(
    services: Services, upload_id: str, received: ReceivedFile, now: Now
) -> UploadPartRead:
    max_bytes = services.settings.max_upload_bytes
    with services.database.writing() as session:
        part = upload_service.add_part(
            session, services.store, upload_id, received, max_bytes=max_bytes, now=now
        )
        return UploadPartRead.of(part)


@router.post("/{upload_id}/complete")
def complete_upload(
    upload_id: str, body: UploadComplete, services: ServicesDep, now: Now
) -> UploadRead:
    """Make the parts a file, which is checked like any other; safe to repeat.

    A file that is refused leaves the upload pending, to be completed with its parts in another
    order, or to be cancelled. Repeating the request is answered with the same file.
    """
    with services.database.reading() as session:
        plan = upload_service.plan_completion(session, upload_id, body.part_ids, now=now)
    if plan is not None:
        try:
            _complete(services, plan, body.md5, now)
        except BlobNotFoundError as error:
            with services.database.reading() as session:  # it may have ended meanwhile
                again = upload_service.plan_completion(session, upload_id, body.part_ids, now=now)
            if again is not None:
                raise upload_service.lost_bytes(upload_id) from error
    with services.database.reading() as session:
        return _read(session, upload_id, now)


def _complete(services: Services, plan: upload_service.Assembly, md5: str | None, now: Now) -> None:
    scratch = services.store.scratch_file()
    room = functools.partial(require_room, services.settings)
    try:
        received = assemble(services.store, plan, scratch, md5=md5, require_room=room)
        check_content(received)
        with services.database.writing() as session:
            freed = upload_service.finish_completion(
                session, services.store, plan, received, now=now
            )
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
    services.free(freed)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, services: ServicesDep, now: Now) -> UploadRead:
    """End a pending upload, and free the bytes of its parts."""
    services.free(
        services.make_room(
            lambda session: upload_service.cancel_upload(session, upload_id, now=now)
        )
    )
    with services.database.reading() as session:
        return _read(session, upload_id, now)


def _read(session: Session, upload_id: str, now: Now) -> UploadRead:
    uploads = UploadRepository(session)
    upload = uploads.get(upload_id)
    file = None
    if upload.file_id is not None:
        with contextlib.suppress(NotFoundError):
            file = FileRepository(session).get(upload.file_id, now=now)
    return UploadRead.model_validate(
        {
            "id": upload.id,
            "bytes": upload.bytes,
            "created_at": int(upload.created_at.timestamp()),
            "expires_at": int(upload.expires_at.timestamp()),
            "filename": upload.filename,
            "status": upload_service.status_of(upload, now=now),
            "file": file and FileRead.of(file),
            "parts": [UploadPartRead.of(part) for part in uploads.list_parts(upload_id)],
        }
    )


router.include_router(_parts_router)
