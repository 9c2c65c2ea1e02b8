"""/v1/fine_tuning/jobs/{id}/adapter and /exports: a job's adapter in the formats of programs."""

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from app.api.access import PolicyRoute, needs
from app.api.archive import Member, Note, zip_segments
from app.api.blob_reading import BlobSegment, Segment
from app.api.deps import CallerDep, Now, Resources, ResourcesDep
from app.api.streaming import record_download, send_segments
from app.core.access import Caller, Scope
from app.core.db.check_tables import Task
from app.core.db.repositories.projects.audit import Action
from app.core.db.repositories.tasks.leases import KEPT_FOR
from app.core.db.repositories.tasks.requests import TaskRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, File
from app.core.errors import StorageFullError
from app.core.job.artifacts import GGUF_ADAPTER_NAME, MANIFEST_NAME
from app.core.job.scores.card import REPORT_CARD_NAME
from app.schemas.exports import RETRY_AFTER_S, ExportList, ExportRead
from app.services import jobs as job_service
from app.services.hand_off import exports
from app.services.hand_off.exports import Export
from app.services.scoring.reports import find_report_card

VERIFICATION = "x-tunery-verification"
"""Header of an export with its `Verification`, as JSON."""

_SAME_DOWNLOAD = timedelta(minutes=5)
"""How long later ranges do not write that the export is kept for longer."""

router = APIRouter(
    prefix="/fine_tuning/jobs/{job_id}", tags=["fine-tuning"], route_class=PolicyRoute
)

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {}, "application/octet-stream": {}}},
    202: {"model": ExportRead, "description": "A worker makes the file. Ask again."},
}


@router.get(
    "/adapter", response_class=Response, responses=_ANSWERS, dependencies=[needs(Scope.READ)]
)
def get_adapter(
    job_id: str,
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    checkpoint: Annotated[
        str | None,
        Query(description="Id or step of a checkpoint. The default is the job's result."),
    ] = None,
    format: Annotated[  # noqa: A002 - the name of the query parameter
        Literal["peft", "gguf", "merged"],
        Query(
            description="`peft` for the adapter as it was trained, in a zip archive; `gguf` for "
            "one file that llama.cpp loads beside the base model; `merged` for a zip archive of "
            "the whole model with the adapter in its weights."
        ),
    ] = "peft",
) -> Response:
    """Download the adapter. Ranges are served, so a download can be resumed.

    An archive has the report on the adapter as `report.md`, once there is one.

    `gguf` and `merged` are made by a worker. Until the file is ready, the answer is 202 with the
    progress, and `Retry-After` says when to ask again. The file is verified before it is sent: the
    header `X-Tunery-Verification` says how. It is deleted 24 hours after its last download.
    """
    if format == "peft":
        return _send_adapter(request, resources, caller, job_id, checkpoint, now=now)
    find = partial(
        exports.find_export, caller=caller, job_id=job_id, checkpoint=checkpoint, variant=format
    )
    export = resources.read(find)
    if export is None:
        export = resources.write(
            lambda session: exports.request_export(
                session,
                caller,
                job_id,
                checkpoint,
                format,
                catalogue=resources.catalogue,
                require_room=resources.require_room,
                now=now,
            )
        )
    if export.task.files is None:
        return _not_ready(export)
    response = _send_export(request, resources, caller, export)
    _keep(resources, caller, export.task, now=now)
    action = Action.ADAPTER_DOWNLOADED
    record_download(request, response, resources, caller, action, export.checkpoint.id, now=now)
    return response


@router.get("/exports", dependencies=[needs(Scope.READ)])
def list_exports(job_id: str, caller: CallerDep, resources: ResourcesDep) -> ExportList:
    """List the exports of a job that are there, are being made or have failed, newest first.

    `GET .../adapter?format=gguf` and `format=merged` begin one.
    """
    return resources.read(lambda session: exports.list_exports(session, caller, job_id))


def _send_adapter(
    request: Request,
    resources: Resources,
    caller: Caller,
    job_id: str,
    checkpoint: str | None,
    *,
    now: datetime,
) -> Response:
    def act(session: Session) -> tuple[Checkpoint, str | None]:
        adapter = job_service.get_adapter(session, caller, job_id, checkpoint)
        return adapter, find_report_card(session, caller, adapter)

    adapter, card = resources.read(act)
    segments, etag = _pack(adapter.files, card, manifest_sha256=adapter.manifest_sha256)
    response = send_segments(
        request,
        resources,
        segments,
        etag=etag,
        media_type="application/zip",
        filename=f"{job_id}-step-{adapter.step}.zip",
    )
    action = Action.ADAPTER_DOWNLOADED
    record_download(request, response, resources, caller, action, adapter.id, now=now)
    return response


def _pack(
    files: Iterable[File | Member], card: str | None, *, manifest_sha256: str
) -> tuple[list[Segment], str]:
    """The archive of the files, with the report if there is one, and its ETag."""
    if card is None:
        return zip_segments(files), manifest_sha256
    note = Note(REPORT_CARD_NAME, card.encode())
    etag = f"{manifest_sha256}-{hashlib.sha256(note.content).hexdigest()[:16]}"
    return zip_segments([*files, note]), etag


def _not_ready(export: Export) -> Response:
    shown = ExportRead.of(export.task, export.checkpoint, export.model)
    return JSONResponse(
        shown.model_dump(mode="json"),
        status_code=202,
        headers={"retry-after": str(RETRY_AFTER_S), "cache-control": "no-store"},
    )


def _send_export(
    request: Request, resources: Resources, caller: Caller, export: Export
) -> Response:
    task, files = export.task, export.task.files or {}
    stem = f"{task.job_id}-step-{export.checkpoint.step}"
    if task.variant == "gguf":
        file = files[GGUF_ADAPTER_NAME]
        segments: list[Segment] = [BlobSegment(file["key"], file["bytes"], file["sha256"])]
        media_type, filename, etag = "application/octet-stream", f"{stem}.gguf", file["sha256"]
    else:
        card = resources.read(lambda session: find_report_card(session, caller, export.checkpoint))
        members = [
            Member(name, file["key"], file["bytes"], file["sha256"], file["crc32"])
            for name, file in files.items()
        ]
        segments, etag = _pack(members, card, manifest_sha256=files[MANIFEST_NAME]["sha256"])
        media_type, filename = "application/zip", f"{stem}-merged.zip"
    response = send_segments(
        request, resources, segments, etag=etag, media_type=media_type, filename=filename
    )
    response.headers[VERIFICATION] = ExportRead.of(
        task, export.checkpoint, export.model
    ).verification_line()
    return response


def _keep(resources: Resources, caller: Caller, task: Task, *, now: datetime) -> None:
    """Keep an export for another day. A full disk stops no download."""
    until = now + KEPT_FOR

    def act(session: Session) -> None:
        TaskRepository(session, caller.project_id).keep_until(task.id, until)

    if task.expires_at is not None and task.expires_at > until - _SAME_DOWNLOAD:
        return
    try:
        resources.write(act)
    except StorageFullError:
        return
