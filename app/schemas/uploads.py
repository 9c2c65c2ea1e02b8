"""Wire format of uploads: files that are sent in parts."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.core.db.tables import UploadPart
from app.schemas.files import EXPIRES_AFTER_S, FileRead
from app.schemas.strict import RequestBody

MAX_PARTS = 10_000


class ExpiresAfter(RequestBody):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=EXPIRES_AFTER_S.start, le=EXPIRES_AFTER_S.stop - 1)
    """Lifetime of the file in seconds, counted from its completion."""


class UploadCreate(RequestBody):
    bytes: int = Field(ge=1)
    """Size of the whole file."""
    filename: str
    mime_type: str
    """Has no effect: whether the file is a dataset is decided by its lines."""
    purpose: str
    """`fine-tune`."""
    expires_after: ExpiresAfter | None = None


class UploadComplete(RequestBody):
    part_ids: list[str] = Field(max_length=MAX_PARTS)
    """The parts of the file in their order."""
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{32}$")] | None = None
    """MD5 of the whole file in hexadecimal digits, to be compared with what was received."""


class UploadPartRead(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    # From here on, ours.
    bytes: int
    sha256: str

    @classmethod
    def of(cls, part: UploadPart) -> "UploadPartRead":
        return cls(
            id=part.id,
            created_at=int(part.created_at.timestamp()),
            upload_id=part.upload_id,
            bytes=part.bytes,
            sha256=part.sha256,
        )


class UploadRead(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    """Size that the file will have."""
    created_at: int
    expires_at: int
    """Unix time after which an upload that is still pending is expired."""
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileRead | None
    """The file that a completed upload has become; null if that was deleted or has expired."""

    # From here on, ours.
    parts: list[UploadPartRead]
    """The parts received so far, oldest first; empty once the upload is no longer pending."""
