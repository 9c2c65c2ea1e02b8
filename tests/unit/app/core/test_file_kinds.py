"""Files that are not plain JSONL: compressed, and of kinds that are refused in one sentence."""

import gzip
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.dataset.checker import DatasetSummary
from app.core.dataset.file_check import FileChecker
from app.core.dataset.file_kinds import HEAD_BYTES, FileKind, find_kind
from app.core.dataset.formats import LineError
from app.core.dataset.gunzip import ExpansionLimit, Gunzip
from app.core.dataset.limits import MAX_EXPANSION, MIN_EXPANSION_BYTES
from tests.builders import CHAT_LINE, TEXT_LINE

ROWS: list[dict[str, Any]] = [{"text": "a"}, {"text": "b"}]


def check(*chunks: bytes) -> DatasetSummary:
    checker = FileChecker()
    for chunk in chunks:
        checker.feed(chunk)
    return checker.finish()


def codes(content: bytes) -> list[tuple[int, str]]:
    return [(one.line, one.code) for one in check(content).problems]


@given(st.data())
def test_gzip_is_read_however_its_bytes_are_cut(data: st.DataObject) -> None:
    content = gzip.compress(CHAT_LINE * 2) + gzip.compress(CHAT_LINE[:20]) + b"\0\0"
    content += gzip.compress(CHAT_LINE[20:])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)))))
    bounds = [0, *cuts, len(content)]

    summary = check(*(content[a:b] for a, b in pairwise(bounds)))

    assert (summary.problems, summary.examples) == ([], 3)


def test_a_file_larger_than_its_head_is_checked_whole() -> None:
    lines = TEXT_LINE * (2 * HEAD_BYTES // len(TEXT_LINE))

    assert check(lines + b"[]\n").problems[0].line == lines.count(b"\n") + 1
    assert check(lines).examples == lines.count(b"\n")
    assert check(gzip.compress(lines)).examples == lines.count(b"\n")


def test_a_bad_line_inside_gzip_is_reported_by_its_number() -> None:
    assert codes(gzip.compress(TEXT_LINE * 2 + CHAT_LINE)) == [(3, "mixed_formats")]


@pytest.mark.parametrize(
    ("content", "line", "code"),
    [
        (gzip.compress(TEXT_LINE)[:-4], 2, "damaged_file"),
        (gzip.compress(TEXT_LINE) + b"trailing", 2, "damaged_file"),
        (gzip.compress(TEXT_LINE * 50)[:20] + b"\xff" * 50, 1, "damaged_file"),
        (gzip.compress(gzip.compress(TEXT_LINE)), 1, "unsupported_file"),
        (gzip.compress(b"prompt,completion\na,b\n"), 1, "unsupported_file"),
        (gzip.compress(json.dumps(ROWS).encode()), 1, "unsupported_file"),
        (gzip.compress(b""), 1, "empty_file"),
    ],
    ids=["cut off", "trailing bytes", "corrupt", "twice", "CSV", "an array", "empty"],
)
def test_bad_gzip_is_refused(content: bytes, line: int, code: str) -> None:
    assert codes(content)[-1:] == [(line, code)]


def test_what_expands_too_much_is_refused_before_it_is_expanded() -> None:
    bomb = gzip.compress(b'{"text": "' + b"x" * (50 * 2**20))
    pieces: list[int] = []

    with pytest.raises(LineError, match=f"more than {MAX_EXPANSION} times"):
        pieces.extend(map(len, Gunzip(ExpansionLimit()).expand(bomb)))

    assert sum(pieces) <= max(MIN_EXPANSION_BYTES, MAX_EXPANSION * len(bomb))
    assert codes(bomb)[-1][1] == "expands_too_much"


def test_the_content_of_a_file_has_a_greatest_size() -> None:
    limit = ExpansionLimit(max_bytes=100)

    limit.add(100, compressed=99)
    with pytest.raises(LineError, match="Split it") as refusal:
        limit.add(1, compressed=99)

    assert refusal.value.code == "expands_too_much"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps(ROWS).encode(), "a JSON array"),
        (json.dumps(ROWS, indent=2).encode(), "a JSON array"),
        (json.dumps(ROWS[0], indent=2).encode(), "a JSON object over several lines"),
        (b"question,answer\na,b\n", "CSV with the columns 'question', 'answer'"),
        (b"PK\x03\x04....", "a ZIP archive or an Excel workbook"),
        (b"BZh91AY&SY", "compressed with bzip2"),
        (b"\x28\xb5\x2f\xfd..", "compressed with Zstandard"),
        ("{}".encode("utf-16"), "UTF-16 text"),
        (b"<!DOCTYPE html>", "an HTML or XML document"),
        (b"%PDF-1.7", "a PDF document"),
    ],
)
def test_a_file_of_another_kind_is_named_in_one_sentence(content: bytes, says: str) -> None:
    (problem,) = check(content).problems

    assert (problem.line, problem.path, problem.code) == (1, "", "unsupported_file")
    assert says in problem.message


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", FileKind.JSONL),
        (b"\xef\xbb\xbf" + TEXT_LINE, FileKind.JSONL),
        (b"[1]\n" + TEXT_LINE, FileKind.JSONL),
        (b"nonsense", FileKind.JSONL),
        (b"text\nHello\n", FileKind.CSV),
        (b"\xef\xbb\xbf\"prompt\";'completion'\n", FileKind.CSV),
        (b"instruction\tinput\toutput\r\n", FileKind.CSV),
        (b"PAR1", FileKind.PARQUET),
        (b"\x1f\x8b", FileKind.GZIP),
    ],
)
def test_the_kind_is_found_in_the_first_bytes(head: bytes, kind: FileKind) -> None:
    assert find_kind(head) is kind
