"""What the bodies of requests and answers share: strict requests, Unix times, pages and errors."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict

from app.core.db.base import Page


class RequestBody(BaseModel):
    """A JSON object whose fields have exactly the types they are documented with."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ResponseBody(BaseModel):
    """A JSON object that can be read from the attributes of a database row."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


def _as_unix_time(value: Any) -> Any:
    return int(value.timestamp()) if isinstance(value, datetime) else value


UnixTime = Annotated[int, BeforeValidator(_as_unix_time)]
"""Whole seconds since 1970 on the wire; a `datetime` in the database."""


class ItemRead(ResponseBody):
    """An object that a list can contain."""

    id: str


Row = TypeVar("Row")
Item = TypeVar("Item", bound=ItemRead)


class PageRead(ResponseBody, Generic[Item]):
    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    """True if the list continues after `last_id`."""
    first_id: str | None
    """Id of the first item on this page. Null for an empty page."""
    last_id: str | None
    """Id of the last item on this page, to be sent as `after` for the next page. Null for an empty
    page."""

    @classmethod
    def of(cls, page: Page[Row], read: Callable[[Row], Item]) -> Self:
        """Convert a page of rows to a response. Without `has_more`, clients would loop forever."""
        data = [read(row) for row in page.rows]
        return cls(
            data=data,
            has_more=page.has_more,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
        )


class ErrorDetail(ResponseBody):
    message: str
    type: str
    param: str | None
    """Name of the parameter that caused the error. Null if no single parameter did."""
    code: str | None
    errors: list[dict[str, str | int]] | None = None
    """List of the problems, for errors that can have several. At most the first 50."""
    error_count: int | None = None
    """Number of all problems, including those that `errors` leaves out."""
    error_count_is_minimum: bool | None = None
    """True if the check of a file stopped at its 50th problem, so there may be more."""


class ErrorRead(ResponseBody):
    error: ErrorDetail


_UNION_BRANCH = re.compile(r"(list|literal)\[.*\]$")
"""Part of pydantic's path that names a branch of a union."""


def dotted(path: Iterable[str | int]) -> str:
    """Write `('messages', 0, 'role')`, the path of one of pydantic's errors, `messages[0].role`."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif not _UNION_BRANCH.match(part):
            shown += f".{part}" if shown else part
    return shown


_MAX_NAME_LENGTH = 64
"""Length of a name above which no similar field is searched, which would take long."""


def nearest_field(annotation: Any, path: tuple[Any, ...], name: str) -> str | None:
    """The field that looks most like `name`, in the object at `path` of a body of this type."""
    if len(name) > _MAX_NAME_LENGTH:
        return None
    model = _model_in(annotation)
    for part in path:
        field = model and model.model_fields.get(str(part))
        model = None if field is None else _model_in(field.annotation)
    return None if model is None else next(iter(get_close_matches(name, _names(model), n=1)), None)


def _names(model: type[BaseModel]) -> list[str]:
    names = [field.alias or name for name, field in model.model_fields.items()]
    for field in model.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names += [str(choice) for choice in field.validation_alias.choices]
    return names


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model | None`."""
    candidates = getattr(annotation, "__args__", (annotation,))
    return next(
        (each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)),
        None,
    )
