import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.strict_json import StrictJsonError, loads

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
)


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
def test_what_readers_would_take_differently_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(StrictJsonError) as refusal:
        loads(raw)

    assert str(refusal.value) == why


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert loads(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
