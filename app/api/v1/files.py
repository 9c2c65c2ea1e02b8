"""/v1/files: upload, list, read, download, delete."""

import contextlib
import functools
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.deps import Cursor, Now, ReadDep, Services, ServicesDep
from app.api.pagination import as_page
from app.api.streaming import send_file
from app.api.uploads import FileField, receive_upload
from app.core.db.pages import Order
from app.core.db.repositories.files import FileRepository
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
    purpose: Annotated[
        str | None,
        Query(
            description="Only files of this purpose. `fine-tune-results` selects every file that a "
            "job has made, those of checkpoints included."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, Query(description="Only files of the checkpoint with this id.")
    ] = None,
) -> PageRead[FileRead]:
    """Uploaded files and the loss logs of succeeded jobs, newest first.

    The files of checkpoints are listed only if `purpose` or `checkpoint` asks for them.
    """
    page = FileRepository(session).list_page(
        now=now, after=after, limit=limit, order=order, purpose=purpose, checkpoint=checkpoint
    )
    return as_page(page, FileRead.of)


@router.get("/{file_id}")
def get_file(file_id: str, session: ReadDep, now: Now) -> FileRead:
    """What is known of a file; not its bytes."""
    return FileRead.of(FileRepository(session).get(file_id, now=now))


@router.get("/{file_id}/content", response_class=Response)
def get_content(
    file_id: str,
    request: Request,
    services: ServicesDep,
    now: Now,
    encoding: Annotated[
        Literal["plain", "base64"] | None,
        Query(
            description="`base64` sends the file in base64, `plain` sends it as it is. Without it, "
            "the file is sent as it is, unless it is the loss log of a job and the service has the "
            "setting `TUNERY_RESULT_FILES_BASE64`."
        ),
    ] = None,
) -> Response:
    """The bytes of a file. Ranges are served, so a broken download can be resumed."""
    with services.database.reading() as session:
        file = FileRepository(session).get(file_id, now=now)
    is_loss_log = file.job_id is not None and file.checkpoint_id is None
    default = "base64" if is_loss_log and services.settings.result_files_base64 else "plain"
    in_base64 = (encoding or default) == "base64"
    return send_file(request, services.store, file, in_base64=in_base64)


@router.delete("/{file_id}")
def delete_file(file_id: str, services: ServicesDep, now: Now) -> FileDeleted:
    """Delete a file, and free its bytes. Refused while a job has yet to read it."""
    blob_key = services.make_room(
        lambda session: file_service.delete_file(session, file_id, now=now)
    )
    services.free([blob_key])
    return FileDeleted(id=file_id)
