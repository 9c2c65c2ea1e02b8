"""What a caller may ask of uploads: files that are sent in parts. The caller owns the transaction.

Completion takes long for a large file, so it is done in three steps, of which the second holds no
transaction: `plan_completion`, joining the parts, `finish_completion`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.uploads import UploadRepository
from app.core.db.session import Session
from app.core.db.tables import Upload, UploadPart
from app.core.errors import InvalidRequestError, PayloadTooLargeError, StateConflictError
from app.core.ids import IdPrefix, new_id
from app.core.storage.blob_store import BlobStore
from app.schemas.uploads import MAX_PARTS, UploadCreate
from app.services.files import ReceivedFile, build_file, check_purpose, plain_name

MAX_PART_BYTES = 64 * 1024 * 1024
"""OpenAI's limit, and the size of the parts that its clients send."""

LIFETIME = timedelta(hours=1)
"""How long an upload may be pending; OpenAI's limit."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A pending upload, and the parts that its file is to be made of."""

    upload_id: str
    filename: str
    bytes: int
    file_expires_after_s: int | None
    part_ids: list[str]
    blobs: list[tuple[str, str]]
    """Key and sha256 of each part, in their order."""


def create_upload(session: Session, body: UploadCreate, *, max_bytes: int, now: datetime) -> Upload:
    """Begin an upload that has no part yet.

    Raises:
        InvalidRequestError: the purpose is not offered.
        PayloadTooLargeError: the file would have more than `max_bytes`.
    """
    check_purpose(body.purpose)
    if body.bytes > max_bytes:
        raise PayloadTooLargeError(
            f"A file may have at most {max_bytes:,} bytes here. Split it, or raise "
            "TUNERY_MAX_UPLOAD_BYTES.",
            code="file_too_large",
            param="bytes",
        )
    upload = Upload(
        id=new_id(IdPrefix.UPLOAD),
        status="pending",
        filename=plain_name(body.filename),
        bytes=body.bytes,
        created_at=now,
        expires_at=now + LIFETIME,
        file_expires_after_s=body.expires_after and body.expires_after.seconds,
    )
    UploadRepository(session).add(upload)
    return upload


def status_of(upload: Upload, *, now: datetime) -> str:
    """Its status; `expired` also before the janitor has come by."""
    is_overdue = upload.status == "pending" and upload.expires_at <= now
    return "expired" if is_overdue else upload.status


def require_pending(upload: Upload, *, now: datetime) -> None:
    """Refuse to change an upload that has ended.

    Raises:
        StateConflictError: it was completed or cancelled, or has expired.
    """
    status = status_of(upload, now=now)
    if status != "pending":
        raise StateConflictError(
            f"Upload {upload.id} is {status}; only a pending upload can be changed. Create a new "
            "upload to send another file.",
            code="upload_not_pending",
        )


def add_part(
    session: Session,
    store: BlobStore,
    upload_id: str,
    received: ReceivedFile,
    *,
    max_bytes: int,
    now: datetime,
) -> UploadPart:
    """Keep a part. The same bytes in the same upload are the same part, however often they come.

    Args:
        max_bytes: of all parts of the upload together.

    Raises:
        NotFoundError: no upload has this id.
        StateConflictError: the upload has ended.
        PayloadTooLargeError: there are too many parts, or too many bytes in them.
    """
    part_id = new_id(IdPrefix.UPLOAD_PART)
    part = UploadPart(
        id=part_id,
        upload_id=upload_id,
        bytes=received.bytes,
        sha256=received.sha256,
        blob_key=f"uploads/{part_id}",
        created_at=now,
    )
    store.put(part.blob_key, received.path)
    try:
        kept = _keep(session, part, max_bytes=max_bytes, now=now)
    except Exception:
        store.delete(part.blob_key)
        raise
    if kept is not part:
        store.delete(part.blob_key)
    return kept


def _keep(session: Session, part: UploadPart, *, max_bytes: int, now: datetime) -> UploadPart:
    uploads = UploadRepository(session)
    require_pending(uploads.get_to_change(part.upload_id), now=now)
    same = uploads.find_part(part.upload_id, part.sha256)
    if same is not None:
        return same
    count, size = uploads.measure_parts(part.upload_id)
    if count >= MAX_PARTS:
        raise PayloadTooLargeError(
            f"An upload may have at most {MAX_PARTS:,} parts. Send larger parts.",
            code="file_too_large",
            param="data",
        )
    if size + part.bytes > max_bytes:
        raise PayloadTooLargeError(
            f"The parts of an upload may together have at most {max_bytes:,} bytes here. Complete "
            "the upload with those that were received, or cancel it and create another.",
            code="file_too_large",
            param="data",
        )
    uploads.add_part(part)
    return part


def plan_completion(
    session: Session, upload_id: str, part_ids: list[str], *, now: datetime
) -> Assembly | None:
    """What to join; None if the upload was completed with these parts already.

    Raises:
        NotFoundError: no upload has this id.
        StateConflictError: it has ended, or was completed with other parts.
        InvalidRequestError: the parts are not all of this upload, or not all of its bytes.
    """
    uploads = UploadRepository(session)
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
            f"These {len(part_ids)} parts have {total:,} bytes together, and upload {upload_id} "
            f"was created for {upload.bytes:,} bytes. Send the parts that are missing, and name "
            "every part in part_ids.",
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


def lost_bytes(upload_id: str) -> StateConflictError:
    """The error for parts of which the service itself has lost or damaged bytes."""
    return StateConflictError(
        f"The service has lost bytes of upload {upload_id}. Cancel it, and send the file again.",
        code="upload_damaged",
    )


def finish_completion(
    session: Session, store: BlobStore, plan: Assembly, received: ReceivedFile, *, now: datetime
) -> list[str]:
    """Make the joined parts a file, unless another request has done so meanwhile.

    Returns:
        The keys of the blobs to free once the transaction is committed.

    Raises:
        StateConflictError: the upload has ended meanwhile, or was completed with other parts.
    """
    after_s = plan.file_expires_after_s
    expires_at = None if after_s is None else now + timedelta(seconds=after_s)
    file = build_file(received, now=now, expires_at=expires_at)
    store.put(file.blob_key, received.path)
    try:
        uploads = UploadRepository(session)
        upload = uploads.get_to_change(plan.upload_id)
        if upload.part_ids == plan.part_ids:
            store.delete(file.blob_key)
            return []
        require_pending(upload, now=now)
        FileRepository(session).add(file)
        upload.part_ids, upload.file_id = plan.part_ids, file.id
        return uploads.end(upload, "completed")
    except Exception:
        store.delete(file.blob_key)
        raise


def cancel_upload(session: Session, upload_id: str, *, now: datetime) -> list[str]:
    """End an upload that is not wanted any more. Cancelling twice is the same as cancelling once.

    Returns:
        The keys of the blobs to free once the transaction is committed.

    Raises:
        NotFoundError: no upload has this id.
        StateConflictError: the upload was completed, or has expired.
    """
    uploads = UploadRepository(session)
    upload = uploads.get_to_change(upload_id)
    if upload.status == "cancelled":
        return []
    require_pending(upload, now=now)
    return uploads.end(upload, "cancelled")
