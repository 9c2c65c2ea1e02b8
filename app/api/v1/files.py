"""/v1/files: upload, list, read, download, delete."""

import contextlib
import functools
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.deps import Cursor, Now, ReadDep, Services, ServicesDep
from app.api.pagination import as_page
from app.api.streaming import send_file
from app.api.uploads import FileField, receive_upload
from app.core.db.files import FileRepository
from app.core.db.pages import Order
from app.core.disk import require_room
from app.core.ids import IdPrefix
from app.schemas.files import EXPIRES_AFTER_S, FileDeleted, FileRead
from app.schemas.pages import PageRead
from app.services import files as file_service

router = APIRouter(prefix="/files", tags=["files"])

_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "const": "fine-tune"},
                        "expires_after[anchor]": {"type": "string", "const": "created_at"},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": EXPIRES_AFTER_S.start,
                            "maximum": EXPIRES_AFTER_S.stop - 1,
                        },
                        "file": {"type": "string", "contentMediaType": "application/jsonl"},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD_BODY)
async def create_file(request: Request, services: ServicesDep, now: Now) -> FileRead:
    """Upload a data set, which is checked line by line; a bad one is refused with every problem.

    The database is touched only after the last byte: no transaction is open while bytes come in.
    """
    scratch = services.store.scratch_file()
    try:
        received = await receive_upload(
            request,
            FileField(
                name="file",
                noun="file",
                max_bytes=services.settings.max_upload_bytes,
                advice="Split it, or raise TUNERY_MAX_UPLOAD_BYTES.",
                is_data_set=True,
            ),
            scratch=scratch,
            require_room=functools.partial(require_room, services.settings),
        )
        return await to_thread.run_sync(_publish, services, received, now)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def _publish(services: Services, received: file_service.ReceivedFile, now: Now) -> FileRead:
    with services.database.writing() as session:
        file = file_service.create_file(session, services.store, received, now=now)
    return FileRead.of(file)


@router.get("")
def list_files(
    session: ReadDep,
    now: Now,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.FILE))],
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: str | None = None,
) -> PageRead[FileRead]:
    """Uploaded files, and those that jobs have made."""
    files = FileRepository(session)
    page = files.list_page(now=now, after=after, limit=limit, order=order, purpose=purpose)
    return as_page(page, FileRead.of)


@router.get("/{file_id}")
def get_file(file_id: str, session: ReadDep, now: Now) -> FileRead:
    """What is known of a file; not its bytes."""
    return FileRead.of(FileRepository(session).get(file_id, now=now))


@router.get("/{file_id}/content", response_class=Response)
def get_content(file_id: str, request: Request, services: ServicesDep, now: Now) -> Response:
    """The bytes of a file. Ranges are served, so a broken download can be resumed."""
    with services.database.reading() as session:
        file = FileRepository(session).get(file_id, now=now)
    media_type = "text/csv" if file.filename.endswith(".csv") else "application/octet-stream"
    return send_file(request, services.store, file, media_type=media_type)


@router.delete("/{file_id}")
def delete_file(file_id: str, services: ServicesDep, now: Now) -> FileDeleted:
    """Delete a file, and free its bytes. Refused while a job has yet to read it."""
    blob_key = services.make_room(
        lambda session: file_service.delete_file(session, file_id, now=now)
    )
    services.free([blob_key])
    return FileDeleted(id=file_id)
