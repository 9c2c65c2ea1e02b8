"""Operations on files. The caller owns the transaction."""

from datetime import datetime, timedelta
from typing import TypeGuard

from app.core.access import Caller
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.session import Session
from app.core.db.tables import File
from app.core.errors import InvalidRequestError, StateConflictError
from app.core.ids import IdPrefix, new_id
from app.schemas.files import EXPIRES_AFTER_S
from app.services.quotas import require_bytes
from app.services.received_files import ReceivedFile, check_content

MAX_FILENAME_LENGTH = 255
_MAX_DIGITS = 18
"""Maximum number of digits in a form's number, because long numbers are slow to convert."""


def check_upload(received: ReceivedFile, *, now: datetime) -> File:
    """The row of an uploaded dataset, for `create_file` once the bytes are at its `blob_key`.

    Raises:
        InvalidRequestError: a field of the form is missing or not allowed.
        InvalidFileError: the file is not a dataset; the error lists the problems.
    """
    check_purpose(received.fields.get("purpose"))
    expires_at = _expiry(received.fields, now=now)
    check_content(received.summary)
    return build_file(received, now=now, expires_at=expires_at)


def create_file(session: Session, caller: Caller, file: File, *, now: datetime) -> None:
    """Publish a file whose bytes are in the store.

    Raises:
        QuotaExceededError: the project may not store so much.
    """
    require_bytes(session, caller, file.bytes)
    FileRepository(session, caller.project_id).add(file)
    audit.record(session, caller, Action.FILE_UPLOADED, file.id, now=now)


def build_file(received: ReceivedFile, *, now: datetime, expires_at: datetime | None) -> File:
    """The row of a received dataset. The caller puts the bytes at its `blob_key`."""
    file_id = new_id(IdPrefix.FILE)
    return File(
        id=file_id,
        purpose="fine-tune",
        filename=plain_name(received.filename),
        bytes=received.bytes,
        sha256=received.sha256,
        crc32=received.crc32,
        blob_key=f"files/{file_id}",
        created_at=now,
        expires_at=expires_at,
        format=received.summary.format,
        examples=received.summary.examples,
        uses_tools=received.summary.uses_tools,
    )


def delete_file(session: Session, caller: Caller, file_id: str, *, now: datetime) -> list[str]:
    """Delete a file that no job needs.

    Returns:
        The keys of the blobs to delete once the transaction is committed.

    Raises:
        NotFoundError: no file has this id.
        StateConflictError: an unfinished job needs it, or it is part of a checkpoint.
    """
    files = FileRepository(session, caller.project_id)
    file = files.get_to_delete(file_id, now=now)
    if file.checkpoint_id is not None:
        raise StateConflictError(
            f"{file_id} is part of the checkpoint {file.checkpoint_id} and cannot be deleted "
            "alone. Delete the tuned model to delete the files of its adapter.",
            code="file_in_use",
        )
    job_id = files.find_unfinished_job_using(file_id)
    if job_id is not None:
        raise StateConflictError(
            f"{file_id} is needed by the job {job_id}. Cancel that job, or wait until it ends.",
            code="file_in_use",
        )
    files.delete(file)
    audit.record(session, caller, Action.FILE_DELETED, file_id, now=now)
    return [file.blob_key]


def plain_name(filename: str) -> str:
    """The client's name for the file, without directories and unprintable characters."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    printable = "".join(character for character in name if character.isprintable())
    return printable[:MAX_FILENAME_LENGTH] if printable.strip(". ") else "upload"


def check_purpose(purpose: str | None) -> None:
    """Raises InvalidRequestError unless the purpose is `fine-tune`."""
    if purpose is None:
        raise InvalidRequestError(
            "The field 'purpose' is missing. It must be 'fine-tune'.",
            code="missing_required_parameter",
            param="purpose",
        )
    if purpose != "fine-tune":
        raise InvalidRequestError(
            f"The purpose {purpose[:40]!r} is not offered here. It must be 'fine-tune'.",
            code="unsupported_purpose",
            param="purpose",
        )


def _expiry(fields: dict[str, str], *, now: datetime) -> datetime | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequestError(
            "'expires_after[anchor]' must be 'created_at'.", param="expires_after[anchor]"
        )
    if not _is_whole_number(seconds) or int(seconds) not in EXPIRES_AFTER_S:
        raise InvalidRequestError(
            f"'expires_after[seconds]' must be a whole number from {EXPIRES_AFTER_S.start} to "
            f"{EXPIRES_AFTER_S.stop - 1}.",
            param="expires_after[seconds]",
        )
    return now + timedelta(seconds=int(seconds))


def _is_whole_number(text: str | None) -> TypeGuard[str]:
    return text is not None and len(text) <= _MAX_DIGITS and text.isdecimal()
