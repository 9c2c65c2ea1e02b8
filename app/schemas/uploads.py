"""Wire format of uploads: files that are sent in parts."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.core.db.tables import File, Upload, UploadPart
from app.schemas.bodies import RequestBody, ResponseBody, UnixTime
from app.schemas.files import EXPIRES_AFTER_S, FileRead

MAX_PARTS = 10_000

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


class ExpiresAfter(RequestBody):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=EXPIRES_AFTER_S.start, le=EXPIRES_AFTER_S.stop - 1)
    """Lifetime of the file in seconds, counted from the completion of the upload."""


class UploadCreate(RequestBody):
    bytes: int = Field(ge=1)
    """Size of the whole file in bytes."""
    filename: str
    mime_type: str
    """Media type of the file. It has no effect: the file's lines decide whether it is a
    dataset."""
    purpose: str
    """Purpose of the file. It must be `fine-tune`."""
    expires_after: ExpiresAfter | None = None


class UploadComplete(RequestBody):
    part_ids: list[str] = Field(max_length=MAX_PARTS, fail_fast=True)
    """Ids of all parts, in the order of their bytes in the file."""
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{32}$")] | None = None
    """MD5 of the whole file in hexadecimal digits. The upload is refused if the received bytes have
    another MD5."""


class UploadPartRead(ResponseBody):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: UnixTime
    upload_id: str

    # From here on, ours.
    bytes: int
    sha256: str


class UploadRead(ResponseBody):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    """Size in bytes that the file will have."""
    created_at: UnixTime
    expires_at: UnixTime
    """Unix time at which the upload expires if it is still pending."""
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: UploadStatus
    file: FileRead | None
    """The file that a completed upload became. Null if that file was deleted or has expired."""

    # From here on, ours.
    parts: list[UploadPartRead]
    """The parts received so far, oldest first. Empty once the upload is no longer pending."""

    @classmethod
    def of(
        cls, upload: Upload, status: UploadStatus, *, file: File | None, parts: Sequence[UploadPart]
    ) -> "UploadRead":
        return cls.model_validate(
            {
                "id": upload.id,
                "bytes": upload.bytes,
                "created_at": upload.created_at,
                "expires_at": upload.expires_at,
                "filename": upload.filename,
                "status": status,
                "file": file and FileRead.model_validate(file),
                "parts": [UploadPartRead.model_validate(part) for part in parts],
            }
        )
