"""OpenAI's cursor pages: data, has_more, first_id, last_id."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from app.core.db.pages import Page
from app.schemas.pages import PageRead


class _HasId(Protocol):
    id: str


Row = TypeVar("Row")
Item = TypeVar("Item", bound=_HasId)


def as_page(
    page: Page[Row], read: Callable[[Row], Item]
) -> "PageRead[Item]":  # quoted, as pydantic cannot make a schema of a protocol
    """A page of rows as its wire format; `has_more` is always there, or clients loop for ever."""
    data = [read(row) for row in page.rows]
    return PageRead(
        data=data,
        has_more=page.has_more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )
