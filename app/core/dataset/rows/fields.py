"""Reads the fields of an object in a dataset. A field that is null counts as absent."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from app.core.dataset.formats import MAX_PROBLEMS, LineError

T = TypeVar("T")


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def is_list_of_objects(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return is_list(value) and all(is_object(item) for item in value)


def without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def unknown_fields(
    fields: Mapping[str, Any], known: Collection[str], what: str, path: str = ""
) -> list[LineError]:
    """The problems of the fields that `what` does not have.

    Args:
        fields: an object of the line.
        known: the names of all fields that the object may have.
        what: what the message calls the object.
        path: where the object is in the line, with a trailing dot.
    """
    return [
        LineError(
            "unknown_field",
            f"{name[:80]!r} is not a field of {what}. Remove it.",
            f"{path}{name[:80]}",
        )
        for name in sorted(fields.keys() - known)[:MAX_PROBLEMS]
    ]


def together(errors: Sequence[LineError]) -> LineError:
    """Attach all but the first error to the first one."""
    first, *others = errors
    first.others = tuple(others)
    return first


def parse_each(items: Sequence[Any], parse: Callable[[Any, int, str], T], path: str) -> list[T]:
    """Parse every item of the list at `path`.

    Raises:
        LineError: an item is malformed. It has the first `MAX_PROBLEMS` problems, or a few more.
    """
    parsed: list[T] = []
    errors: list[LineError] = []
    for index, item in enumerate(items):
        try:
            parsed.append(parse(item, index, f"{path}[{index}]"))
        except LineError as error:
            errors += [error, *error.others]
            if len(errors) >= MAX_PROBLEMS:
                break
    if errors:
        raise together(errors)
    return parsed


def read_string(row: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    """A required text.

    Raises:
        LineError: it is missing, is not a string, or is empty.
    """
    value = row.get(key)
    if value is None:
        raise LineError("missing_field", f"{key!r} is missing. Add it.", key)
    if not isinstance(value, str):
        raise LineError("wrong_type", f"{key!r} must be a string.", key)
    if not value and not may_be_empty:
        raise LineError("empty_field", f"{key!r} is empty. Fill it, or remove the line.", key)
    return value
