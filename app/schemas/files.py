"""Wire format of files."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.core.db.tables import File

EXPIRES_AFTER_S = range(3600, 2_592_000 + 1)
"""OpenAI's range: an hour to thirty days."""


class FileRead(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    status_details: str | None = None

    # From here on, ours.
    sha256: str
    format: Literal["text", "prompt_completion", "messages"] | None
    """Format of a data set. Null for a file that a job made."""
    examples: int | None
    """Number of examples in a data set. Null for a file that a job made."""

    @classmethod
    def of(cls, file: File) -> "FileRead":
        return cls.model_validate(
            {
                "id": file.id,
                "bytes": file.bytes,
                "created_at": int(file.created_at.timestamp()),
                "expires_at": file.expires_at and int(file.expires_at.timestamp()),
                "filename": file.filename,
                "purpose": file.purpose,
                "sha256": file.sha256,
                "format": file.format,
                "examples": file.examples,
            }
        )


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
