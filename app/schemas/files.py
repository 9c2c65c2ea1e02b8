"""Wire format of files."""

from typing import Literal

from app.core.dataset.formats import DatasetFormat
from app.core.dataset.tokenizing.messages import PreviewedRow
from app.schemas.bodies import ItemRead, ResponseBody, UnixTime

EXPIRES_AFTER_S = range(3600, 2_592_000 + 1)
"""Lifetimes that a file can be given, in seconds: OpenAI's range, one hour to thirty days."""


class FileRead(ItemRead):
    object: Literal["file"] = "file"
    bytes: int
    created_at: UnixTime
    expires_at: UnixTime | None
    """Unix time at which the file is deleted. Null for a file that does not expire."""
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    status_details: str | None = None

    # From here on, ours.
    sha256: str
    format: DatasetFormat | None
    """Format of a dataset. Null for a file that a job made."""
    examples: int | None
    """Number of examples in a dataset. Null for a file that a job made."""


class FileDeleted(ResponseBody):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class PreviewRead(ResponseBody):
    object: Literal["file.preview"] = "file.preview"
    file_id: str
    model: str
    """Base model whose tokenizer has read the rows, as the request named it."""
    rows: tuple[PreviewedRow, ...]
    stop: str
    """Text that ends an answer. Empty if no row could be read."""
    warnings: tuple[str, ...]
    """What a job on these rows would be warned of."""
