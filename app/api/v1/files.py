"""/v1/files: upload, list, read, download and delete files."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.access import PolicyRoute, needs
from app.api.deps import LIMIT, ORDER, CallerDep, Cursor, Now, ResourcesDep
from app.api.multipart import FileField, form_of, receive_and_use
from app.api.streaming import record_download, send_file
from app.core.access import Scope
from app.core.db.base import Order
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.projects.audit import Action
from app.core.ids import IdPrefix
from app.core.storage.blob_store import stored
from app.schemas.bodies import PageRead
from app.schemas.files import EXPIRES_AFTER_S, FileDeleted, FileRead
from app.services import files as file_service
from app.services.received_files import ReceivedFile

router = APIRouter(prefix="/files", tags=["files"], route_class=PolicyRoute)

_FORM = form_of(
    {
        "purpose": {"type": "string", "const": "fine-tune"},
        "expires_after[anchor]": {"type": "string", "const": "created_at"},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": EXPIRES_AFTER_S.start,
            "maximum": EXPIRES_AFTER_S.stop - 1,
        },
        "file": {"type": "string", "contentMediaType": "application/jsonl"},
    },
    required=["purpose", "file"],
)


@router.post("", openapi_extra=_FORM, dependencies=[needs(Scope.WRITE)])
async def create_file(
    request: Request, caller: CallerDep, resources: ResourcesDep, now: Now
) -> FileRead:
    """Upload a dataset. Every line is checked. The answer to an invalid file lists its problems."""
    # No transaction is open while bytes come in: the database is used only after the last byte.
    field = FileField(
        name="file",
        noun="file",
        max_bytes=resources.settings.max_upload_bytes,
        advice="Split it, or raise TUNERY_MAX_UPLOAD_BYTES.",
        is_dataset=True,
    )

    def use(received: ReceivedFile) -> FileRead:
        file = file_service.check_upload(received, now=now)
        with stored(resources.store, {file.blob_key: received.path}):
            resources.write(partial(file_service.create_file, caller=caller, file=file, now=now))
        return FileRead.model_validate(file)

    return await receive_and_use(request, field, resources, use)


@router.get("", dependencies=[needs(Scope.READ)])
def list_files(
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.FILE))],
    limit: Annotated[int, Query(ge=1, le=10_000, description=LIMIT)] = 10_000,
    order: Annotated[Order, Query(description=ORDER)] = "desc",
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
    """List the uploaded files and the loss logs of succeeded jobs, newest first.

    The files of checkpoints are listed only if `purpose` or `checkpoint` asks for them.
    """
    page = resources.read(
        lambda session: FileRepository(session, caller.project_id).list_page(
            now=now, after=after, limit=limit, order=order, purpose=purpose, checkpoint=checkpoint
        )
    )
    return PageRead[FileRead].of(page, FileRead.model_validate)


@router.get("/{file_id}", dependencies=[needs(Scope.READ)])
def get_file(file_id: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> FileRead:
    """Get the metadata of a file: its name, size, purpose, format and dates."""
    return FileRead.model_validate(
        resources.read(
            lambda session: FileRepository(session, caller.project_id).get(file_id, now=now)
        )
    )


@router.get("/{file_id}/content", response_class=Response, dependencies=[needs(Scope.READ)])
def get_content(
    file_id: str,
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    encoding: Annotated[
        Literal["plain", "base64"] | None,
        Query(
            description="`base64` sends the file in base64, `plain` sends it as it is. The "
            "default is `plain`, except for the loss log of a job if the service has the setting "
            "`TUNERY_RESULT_FILES_BASE64`."
        ),
    ] = None,
) -> Response:
    """Download the bytes of a file. Ranges are served, so a download can be resumed."""
    file = resources.read(
        lambda session: FileRepository(session, caller.project_id).get(file_id, now=now)
    )
    is_loss_log = file.job_id is not None and file.checkpoint_id is None
    default = "base64" if is_loss_log and resources.settings.result_files_base64 else "plain"
    in_base64 = (encoding or default) == "base64"
    response = send_file(request, resources, file, in_base64=in_base64)
    record_download(request, response, resources, caller, Action.FILE_DOWNLOADED, file_id, now=now)
    return response


@router.delete("/{file_id}", dependencies=[needs(Scope.WRITE)])
def delete_file(file_id: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> FileDeleted:
    """Delete a file and its bytes. A file that an unfinished job needs is not deleted."""
    resources.delete(lambda session: file_service.delete_file(session, caller, file_id, now=now))
    return FileDeleted(id=file_id)
