"""Cursor pages. The cursor is the id of the last row a client has; ids sort by time."""

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

Order = Literal["asc", "desc"]
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    rows: list[Row]
    has_more: bool


def fetch_page(
    session: Session,
    query: Select[Row],
    id_column: InstrumentedAttribute[str],
    *,
    after: str | None,
    limit: int,
    order: Order = "desc",
) -> Page[Row]:
    """Up to `limit` rows after the id `after`, whose own row may have been deleted."""
    if after is not None:
        follows: ColumnElement[bool] = id_column > after if order == "asc" else id_column < after
        query = query.where(follows)
    by: ColumnElement[Any] = id_column.asc() if order == "asc" else id_column.desc()
    rows = list(session.scalars(query.order_by(by).limit(limit + 1)))
    return Page(rows[:limit], has_more=len(rows) > limit)
