"""Operations on uploads, files that are sent in parts. The caller owns the transaction.

Completing a large file takes long, so it has three steps: `plan_completion`, `assemble` and
`finish_completion`. The step in the middle holds no transaction.
"""

import contextlib
from datetime import datetime, timedelta
from typing import cast

from app.core.access import Caller
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.uploads import UploadRepository
from app.core.db.session import Session
from app.core.db.tables import File, Upload, UploadPart
from app.core.disk import require_room
from app.core.errors import (
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    StateConflictError,
)
from app.core.ids import IdPrefix, new_id
from app.core.settings import Settings
from app.schemas.uploads import MAX_PARTS, UploadCreate, UploadRead, UploadStatus
from app.services.files import build_file, check_purpose, create_file, plain_name
from app.services.quotas import require_bytes
from app.services.received_files import Assembly, ReceivedFile

MAX_PART_BYTES = 64 * 1024 * 1024
"""Maximum size of a part: OpenAI's limit, and the size of the parts that its clients send."""

LIFETIME = timedelta(hours=1)
"""How long an upload can be pending: OpenAI's limit."""


def create_upload(
    session: Session, caller: Caller, body: UploadCreate, settings: Settings, *, now: datetime
) -> UploadRead:
    """Create an upload that has no parts yet.

    Raises:
        InvalidRequestError: the purpose is not offered.
        PayloadTooLargeError: the file would have more than TUNERY_MAX_UPLOAD_BYTES.
        StorageFullError: the disk has no room for the file.
        QuotaExceededError: the project may not store so much.
    """
    check_purpose(body.purpose)
    if body.bytes > settings.max_upload_bytes:
        raise PayloadTooLargeError(
            f"A file can have at most {settings.max_upload_bytes:,} bytes here. Split it, or raise "
            "TUNERY_MAX_UPLOAD_BYTES.",
            code="file_too_large",
            param="bytes",
        )
    require_room(settings, body.bytes)
    require_bytes(session, caller, body.bytes)
    upload = Upload(
        id=new_id(IdPrefix.UPLOAD),
        status="pending",
        filename=plain_name(body.filename),
        bytes=body.bytes,
        created_at=now,
        expires_at=now + LIFETIME,
        file_expires_after_s=body.expires_after and body.expires_after.seconds,
    )
    UploadRepository(session, caller.project_id).add(upload)
    return read_upload(session, caller, upload.id, now=now)


def read_upload(session: Session, caller: Caller, upload_id: str, *, now: datetime) -> UploadRead:
    """An upload on the wire, with its parts or its file.

    Raises:
        NotFoundError: no upload has this id.
    """
    uploads = UploadRepository(session, caller.project_id)
    upload = uploads.get(upload_id)
    file = None
    if upload.file_id is not None:
        with contextlib.suppress(NotFoundError):
            file = FileRepository(session, caller.project_id).get(upload.file_id, now=now)
    parts = uploads.list_parts(upload_id)
    return UploadRead.of(upload, status_of(upload, now=now), file=file, parts=parts)


def status_of(upload: Upload, *, now: datetime) -> UploadStatus:
    """Status of an upload, which is `expired` even before the janitor has set it."""
    is_overdue = upload.status == "pending" and upload.expires_at <= now
    return "expired" if is_overdue else cast("UploadStatus", upload.status)


def require_pending(upload: Upload, *, now: datetime) -> None:
    """Check that an upload can still be changed.

    Raises:
        StateConflictError: it was completed or cancelled, or has expired.
    """
    status = status_of(upload, now=now)
    if status != "pending":
        raise StateConflictError(
            f"Upload {upload.id} is {status}, and only a pending upload can be changed. Create a "
            "new upload to send another file.",
            code="upload_not_pending",
        )


def build_part(upload_id: str, received: ReceivedFile, *, now: datetime) -> UploadPart:
    """The row of a received part, for `add_part` once the bytes are at its `blob_key`."""
    part_id = new_id(IdPrefix.UPLOAD_PART)
    return UploadPart(
        id=part_id,
        upload_id=upload_id,
        bytes=received.bytes,
        sha256=received.sha256,
        blob_key=f"uploads/{part_id}",
        created_at=now,
    )


def add_part(
    session: Session,
    caller: Caller,
    part: UploadPart,
    *,
    max_bytes: int,
    max_parts: int = MAX_PARTS,
    now: datetime,
) -> UploadPart:
    """Add a part to an upload. The same bytes in the same upload are always the same part.

    Args:
        part: the part, whose bytes are in the store.
        max_bytes: maximum size of all parts of the upload together.
        max_parts: maximum number of parts of the upload.

    Raises:
        NotFoundError: no upload has this id.
        StateConflictError: the upload has ended.
        PayloadTooLargeError: the upload would have too many parts or too many bytes.
        QuotaExceededError: the project may not store so much.

    Returns:
        The part, or the one that the upload has with the same bytes. The caller then deletes the
        new ones.
    """
    uploads = UploadRepository(session, caller.project_id)
    require_pending(uploads.get_to_change(part.upload_id), now=now)
    same = uploads.find_part(part.upload_id, part.sha256)
    if same is not None:
        return same
    count, size = uploads.measure_parts(part.upload_id)
    if count >= max_parts:
        raise PayloadTooLargeError(
            f"An upload can have at most {max_parts:,} parts. Send larger parts.",
            code="file_too_large",
            param="data",
        )
    if size + part.bytes > max_bytes:
        raise PayloadTooLargeError(
            f"The parts of an upload can have at most {max_bytes:,} bytes together here. Complete "
            "the upload with the parts received so far, or cancel it and create another.",
            code="file_too_large",
            param="data",
        )
    require_bytes(session, caller, part.bytes)
    uploads.add_part(part)
    return part


def plan_completion(
    session: Session, caller: Caller, upload_id: str, part_ids: list[str], *, now: datetime
) -> Assembly | None:
    """The parts to join, or None if the upload has already been completed with these parts.

    Raises:
        NotFoundError: no upload has this id.
        StateConflictError: it has ended, or was completed with other parts.
        InvalidRequestError: a part belongs to another upload, or the parts are not the whole file.
    """
    uploads = UploadRepository(session, caller.project_id)
    upload = uploads.get(upload_id)
    if upload.part_ids == part_ids:
        return None
    require_pending(upload, now=now)
    parts = {part.id: part for part in uploads.list_parts(upload_id)}
    for place, part_id in enumerate(part_ids):
        if part_id not in parts:
            raise InvalidRequestError(
                f"Upload {upload_id} has no part {part_id[:80]!r}. GET /v1/uploads/{upload_id} "
                "lists its parts.",
                code="part_not_found",
                param=f"part_ids[{place}]",
            )
    total = sum(parts[part_id].bytes for part_id in part_ids)
    if total != upload.bytes:
        raise InvalidRequestError(
            f"These {len(part_ids)} parts have {total:,} bytes together, but upload {upload_id} "
            f"was created for {upload.bytes:,} bytes. Send the missing parts, and name every part "
            "in 'part_ids'.",
            code="upload_size_mismatch",
            param="part_ids",
        )
    return Assembly(
        upload_id=upload_id,
        filename=upload.filename,
        bytes=upload.bytes,
        file_expires_after_s=upload.file_expires_after_s,
        part_ids=part_ids,
        blobs=[(parts[part_id].blob_key, parts[part_id].sha256) for part_id in part_ids],
    )


def build_completed(plan: Assembly, received: ReceivedFile, *, now: datetime) -> File:
    """The row of the joined parts, for `finish_completion` once the bytes are at its `blob_key`."""
    after_s = plan.file_expires_after_s
    expires_at = None if after_s is None else now + timedelta(seconds=after_s)
    return build_file(received, now=now, expires_at=expires_at)


def finish_completion(
    session: Session, caller: Caller, plan: Assembly, file: File, *, now: datetime
) -> list[str]:
    """Publish the joined parts as a file, unless another request has done so meanwhile.

    Returns:
        The keys of the blobs to delete once the transaction is committed.

    Raises:
        StateConflictError: the upload has ended meanwhile, or was completed with other parts.
        QuotaExceededError: the project may not store so much, as the file repeats parts.
    """
    uploads = UploadRepository(session, caller.project_id)
    upload = uploads.get_to_change(plan.upload_id)
    if upload.part_ids == plan.part_ids:
        return [file.blob_key]
    require_pending(upload, now=now)
    upload.part_ids, upload.file_id = plan.part_ids, file.id
    parts = uploads.end(upload, "completed")
    create_file(session, caller, file, now=now)
    return parts


def cancel_upload(session: Session, caller: Caller, upload_id: str, *, now: datetime) -> list[str]:
    """End an upload that is not needed any more. Cancelling twice has no further effect.

    Returns:
        The keys of the blobs to delete once the transaction is committed.

    Raises:
        NotFoundError: no upload has this id.
        StateConflictError: the upload was completed, or has expired.
    """
    uploads = UploadRepository(session, caller.project_id)
    upload = uploads.get_to_change(upload_id)
    if upload.status == "cancelled":
        return []
    require_pending(upload, now=now)
    return uploads.end(upload, "cancelled")
