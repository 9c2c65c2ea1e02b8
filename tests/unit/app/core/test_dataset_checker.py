from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.dataset.checker import DatasetChecker, DatasetSummary
from app.core.dataset.formats import DatasetFormat
from tests.builders import CHAT_LINE, TEXT_LINE

BOM = b"\xef\xbb\xbf"
BLANK_LINE = (3, "", "blank_line", "This line is blank, and examples follow it. Remove it.")

_LINES = st.sampled_from(
    [TEXT_LINE, CHAT_LINE, b"\n", b" \r\n", b"[]\n", b'{"text": NaN}\n', b'{"text": "a"}\r\n', BOM]
)


def check(*chunks: bytes) -> DatasetSummary:
    checker = DatasetChecker()
    for chunk in chunks:
        checker.feed(chunk)
    return checker.finish()


def problems(summary: DatasetSummary) -> list[tuple[int, str, str, str]]:
    return [(one.line, one.path, one.code, one.message) for one in summary.problems]


@given(st.lists(_LINES).map(b"".join), st.data())
def test_the_verdict_does_not_depend_on_how_the_bytes_are_cut(
    content: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)))))
    bounds = [0, *cuts, len(content)]

    assert check(*(content[a:b] for a, b in pairwise(bounds))) == check(content)


@pytest.mark.parametrize(
    ("content", "examples"),
    [
        pytest.param(TEXT_LINE * 3, 3, id="plain"),
        pytest.param(BOM + TEXT_LINE, 1, id="byte order mark"),
        pytest.param(b'{"text": "a"}\r\n{"text": "b"}\r\n', 2, id="carriage returns"),
        pytest.param(TEXT_LINE + b"\n \r\n\n", 1, id="trailing blank lines"),
        pytest.param(TEXT_LINE.strip(), 1, id="no final line feed"),
        pytest.param('{"text": "a\u2028b\u0085c"}\n'.encode(), 1, id="other line separators"),
    ],
)
def test_what_users_files_look_like_is_accepted(content: bytes, examples: int) -> None:
    summary = check(content)

    assert problems(summary) == []
    assert (summary.format, summary.examples) == (DatasetFormat.TEXT, examples)


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\r\n", BOM])
def test_a_file_without_an_example_is_refused(content: bytes) -> None:
    assert problems(check(content)) == [
        (1, "", "empty_file", "The file has no examples. Add at least one line.")
    ]


def test_a_blank_line_between_examples_is_reported_once_where_it_begins() -> None:
    summary = check(TEXT_LINE * 2 + b"\n\n" + TEXT_LINE + b"\n")

    assert problems(summary) == [BLANK_LINE]
    assert summary.examples == 3


def test_one_file_has_one_format() -> None:
    summary = check(TEXT_LINE + CHAT_LINE + TEXT_LINE)

    assert [(one.line, one.code) for one in summary.problems] == [(2, "mixed_formats")]


def test_a_second_byte_order_mark_is_not_json() -> None:
    assert [one.line for one in check(TEXT_LINE + BOM + TEXT_LINE).problems] == [2]


def test_the_check_stops_at_the_fiftieth_problem() -> None:
    fewer, more = check(b"[]\n" * 49), check(b"[]\n" * 60, TEXT_LINE)

    assert [one.line for one in fewer.problems] == list(range(1, 50))
    assert [one.line for one in more.problems] == list(range(1, 51))
    assert (fewer.is_partial, more.is_partial) == (False, True)
    assert more.examples == 0


@pytest.mark.parametrize("chunk_bytes", [64, 10_000])
@pytest.mark.parametrize("end", [b"\n", b""], ids=["line feed", "end of file"])
def test_a_line_that_is_too_long_is_reported_and_never_held(chunk_bytes: int, end: bytes) -> None:
    long_line = b'{"text": "' + b"x" * 3000 + b'"}'
    content = TEXT_LINE + long_line + (end + TEXT_LINE if end else b"")
    checker = DatasetChecker(max_line_bytes=1024)

    for start in range(0, len(content), chunk_bytes):
        checker.feed(content[start : start + chunk_bytes])
        assert len(checker._rest) <= 1024
    summary = checker.finish()

    assert [(one.line, one.code) for one in summary.problems] == [(2, "line_too_long")]
    assert summary.examples == (2 if end else 1)


def test_a_line_just_short_enough_is_read() -> None:
    checker = DatasetChecker(max_line_bytes=len(TEXT_LINE) - 1)

    checker.feed(TEXT_LINE)

    assert checker.finish().examples == 1


def test_tools_anywhere_in_the_file_are_noticed() -> None:
    with_tools = CHAT_LINE.replace(b"]}\n", b'], "tools": [{"type": "function"}]}\n')

    assert not check(CHAT_LINE).uses_tools
    assert check(CHAT_LINE + with_tools + CHAT_LINE).uses_tools


def test_every_problem_of_a_line_is_reported() -> None:
    line = b'{"messages": [{"role": "x"}, {"role": "user", "content": 1}], "foo": 1, "bar": 2}\n'

    summary = check(line)

    found = [(one.line, one.path, one.code) for one in summary.problems]
    assert found == [
        (1, "bar", "unknown_field"),
        (1, "foo", "unknown_field"),
        (1, "messages[0].role", "bad_role"),
        (1, "messages[1].content", "wrong_type"),
    ]


def test_an_empty_list_of_tool_calls_is_no_use_of_tools() -> None:
    line = b'{"messages": [{"role": "assistant", "content": "a", "tool_calls": []}]}\n'

    assert check(line).uses_tools is False
