"""Wire format of a page of anything, and of an error."""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item")


class PageRead(BaseModel, Generic[Item]):
    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ErrorDetail(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    type: str
    param: str | None
    code: str | None
    errors: list[dict[str, str | int]] | None = None
    """Every single problem, where there may be several; of a file, the first 50."""
    error_count: int | None = None
    """How many problems there are in all."""


class ErrorRead(BaseModel):
    error: ErrorDetail
