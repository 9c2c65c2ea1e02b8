"""Strict JSON (RFC 8259), which every parser reads alike.

`json.loads` accepts NaN, infinities (also as 1e999), repeated keys, lone surrogates and NUL
characters. Each of them breaks something later: a database binding, a tokenizer, another
language's parser. This module rejects them at the entrance.

A fast parser reads the plain cases. A thorough parser, many times slower, decides about the others
and explains what is wrong.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn, cast

import jiter

_NUL = b"\\u0000"
"""The only valid spelling of that character in JSON; parsers reject the raw character."""


class StrictJsonError(ValueError):
    """The text is not strict JSON. The message says why."""


def loads(raw: bytes) -> Any:
    """Parse UTF-8 JSON.

    Raises:
        StrictJsonError: the text is not UTF-8, not JSON, or ambiguous.
    """
    try:
        value = loads_quickly(raw)
    except ValueError:
        return _loads_thoroughly(raw)
    return _loads_thoroughly(raw) if _NUL in raw or not _is_finite(value) else value


def has_more_values(raw: bytes, limit: int) -> bool:
    """Whether a text has more than `limit` JSON values, found without parsing it.

    The answer is exact for valid JSON, save that an empty object or list counts as two.
    """
    if len(raw) <= limit or _count_marks(raw) < limit:
        return False
    # Only marks outside of strings separate values, so take the strings out.
    text = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if text.count(b'"') > 4 * limit:  # a value has at most a key and a string
        return True
    return _count_marks(b"".join(text.split(b'"')[::2])) >= limit


def _count_marks(raw: bytes) -> int:
    """Number of characters that a value begins after. Only the outermost value has none."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` levels deep."""
    level = [value]
    for _ in range(limit + 1):
        level = [inner for outer in level for inner in members(outer)]
        if not level:
            return False
    return True


def has_wider_object(value: Any, limit: int) -> bool:
    """Whether an object anywhere in the value has more than `limit` keys."""
    level = [value]
    while level:
        if any(isinstance(each, dict) and len(cast("Any", each)) > limit for each in level):
            return True
        level = [inner for outer in level for inner in members(outer)]
    return False


def members(value: Any) -> Iterable[Any]:
    """The values in an object or a list. Nothing else has any."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def loads_quickly(raw: bytes) -> Any:
    """Parse most UTF-8 JSON quickly. A number that is too large becomes an infinity.

    Apart from that and from strings with U+0000, it accepts only what `loads` accepts, with the
    same result.

    Raises:
        ValueError: the text is not strict JSON, or only the thorough parser can decide.
    """
    return jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")


def _is_finite(value: Any) -> bool:
    """Whether a value has no infinity in it. Called for every value, so it must be fast."""
    kind = value.__class__
    if kind is dict:
        value = value.values()
    elif kind is not list:
        return kind is not float or math.isfinite(value)
    for item in value:  # noqa: SIM110 - twice as fast
        if item.__class__ is not str and not _is_finite(item):
            return False
    return True


def _loads_thoroughly(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
        if "\\u" in text:  # the only way to write either of them
            _refuse_bad_characters(value)
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"{error.msg} at column {error.pos + 1}") from error
    except RecursionError as error:
        raise StrictJsonError("nested too deeply") from error
    except StrictJsonError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise StrictJsonError("a number has too many digits") from error
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise StrictJsonError(f"the key {repeated[:80]!r} is given twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise StrictJsonError(f"{text[:40]} is too large for a number")
    return number


def _refuse_bad_characters(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise StrictJsonError("a string contains the character U+0000")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise StrictJsonError("a string contains half of a surrogate pair") from error
    elif isinstance(value, dict):
        for pair in cast("dict[str, Any]", value).items():
            _refuse_bad_characters(list(pair))
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            _refuse_bad_characters(item)
