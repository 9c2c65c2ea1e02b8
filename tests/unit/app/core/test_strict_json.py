import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core import strict_json
from app.core.strict_json import StrictJsonError, loads, loads_quickly
from tests.effort import effort

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
)
_PIECES = (
    *("{", "}", "[", "]", ",", ":", " ", "\n", "\t", "\r", "\v", "\xa0", "\ufeff", "\0", "x", '"'),
    *(
        '"a"',
        '"a":',
        '"\\u0061":',
        '"\\u0000"',
        '"\\ud83d\\ude00"',
        '"\\ud800"',
        '"\\ude00\\ud83d"',
    ),
    *('"\\/"', '"\\x"', '"\\u00e"', '"\x01"', '"\x7f\u2028é"', "true", "null", "NaN", "-Infinity"),
    *("0", "-0", "01", "1.", ".5", "1e5", "1E+05", "1e309", "-1e0999", "1e-400", "-", "+1", "1_0"),
    *(
        "9" * 308,
        "9" * 309 + ".5",
        "1" * 4300,
        "1" * 4301,
        "0." + "1" * 400,
        "123456789012345678901",
    ),
)
_NEAR_JSON = st.lists(st.sampled_from(_PIECES), max_size=12).map("".join).map(str.encode)
_BROKEN_JSON = st.builds(
    lambda value, at, byte: json.dumps(value).encode()[: at % 50] + byte + b"1]}",
    _VALUES,
    st.integers(0, 49),
    st.binary(max_size=3),
)


def outcome(parse: Any, raw: bytes) -> str:
    """The value, to the sign of a zero and the order of keys, or why there is none."""
    try:
        return repr(parse(raw))
    except StrictJsonError as error:
        return f"refused: {error}"


@pytest.fixture
def usual_recursion_limit() -> Iterator[None]:
    """Python's own, which some libraries (torch's compiler) raise for the whole process."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


@given(_NEAR_JSON | _BROKEN_JSON | st.binary(max_size=12))
@settings(max_examples=effort(500, long=3000))
def test_the_quick_parser_never_changes_what_the_thorough_one_says(raw: bytes) -> None:
    assert outcome(loads, raw) == outcome(strict_json._loads_thoroughly, raw)


@given(_VALUES)
def test_the_quick_parser_reads_what_is_usual(value: object) -> None:
    assert loads_quickly(json.dumps(value).encode()) == value


@pytest.mark.parametrize("depth", [100, 200, 201, 202, 203, 300, 500])
def test_where_the_quick_parser_gives_up_the_thorough_one_goes_on(depth: int) -> None:
    value = loads(b"[" * depth + b"]" * depth)

    for _ in range(depth - 1):
        (value,) = value
    assert value == []


def test_the_quick_parser_alone_takes_numbers_that_are_too_large() -> None:
    assert loads_quickly(b"1e999") == math.inf


@given(_VALUES, st.booleans())
def test_what_json_can_say_is_read_as_it_was_written(value: object, is_ascii: bool) -> None:  # noqa: FBT001 - drawn
    assert loads(json.dumps(value, ensure_ascii=is_ascii).encode()) == value


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        pytest.param(b'{"a": NaN}', "NaN is not JSON", id="nan"),
        pytest.param(b"[-Infinity]", "-Infinity is not JSON", id="infinity"),
        pytest.param(b"1e999", "1e999 is too large for a number", id="huge float"),
        pytest.param(b"1" * 5000, "a number has too many digits", id="huge integer"),
        pytest.param(b'{"a": 1, "a": 1}', "the key 'a' is given twice", id="repeated key"),
        pytest.param(
            b'[{"b": {"c": 1, "\\u0063": 2}}]', "the key 'c' is given twice", id="repeated, deep"
        ),
        pytest.param(
            b'"\\ud800"', "a string contains half of a surrogate pair", id="lone surrogate"
        ),
        pytest.param(
            b'{"\\udc00": 1}', "a string contains half of a surrogate pair", id="surrogate key"
        ),
        pytest.param(b'["\\u0000"]', "a string contains the character U+0000", id="nul"),
        pytest.param(b'"\x00"', "Invalid control character at at column 2", id="raw nul"),
        pytest.param(b'"\xff"', "not UTF-8: invalid start byte at byte 1", id="not utf-8"),
        pytest.param(
            b'"\xed\xa0\x80"', "not UTF-8: invalid continuation byte at byte 1", id="cesu"
        ),
        pytest.param(
            '"a"'.encode("utf-16"), "not UTF-8: invalid start byte at byte 0", id="utf-16"
        ),
        pytest.param(b"", "Expecting value at column 1", id="empty"),
        pytest.param(b"{} {}", "Extra data at column 4", id="two values"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep"),
        pytest.param(
            b'{"a":' * 700 + b'"\\u0041"' + b"}" * 700, "nested too deeply", id="deep, with escapes"
        ),
    ],
)
@pytest.mark.usefixtures("usual_recursion_limit")
def test_what_readers_would_take_differently_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(StrictJsonError) as refusal:
        loads(raw)

    assert str(refusal.value) == why


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert loads(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
