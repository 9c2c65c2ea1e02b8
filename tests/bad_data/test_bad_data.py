"""Bad rows and files of every format, uploaded: each is answered with what is wrong, and where.

The tables beside this module have one bad row per line: the code, the path (`-` for none) and the
row itself. It is uploaded as the second of three lines; the others are the row marked `good`.
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.lab import Lab, open_lab

TABLES = sorted(Path(__file__).parent.glob("*.txt"))
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CHAT = b'{"messages": [{"role": "assistant", "content": "a"}]}\n'
TEXT = b'{"text": "a"}\n'


class BadRow(NamedTuple):
    code: str
    path: str
    row: str
    good: str


def read_table(path: Path) -> Iterator[BadRow]:
    good = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("good "):
            good = line.split(maxsplit=1)[1]
        elif line and not line.startswith("#"):
            code, where, row = line.split(maxsplit=2)
            yield BadRow(code, "" if where == "-" else where, row, good)


ROWS = {
    f"{path.stem} {number}": row
    for path in TABLES
    for number, row in enumerate(read_table(path), start=1)
}


def as_parquet(columns: dict[str, Any]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    return target.getvalue()


def chats(*second: Any) -> bytes:
    """A Parquet file whose second row has these messages."""
    return as_parquet({"messages": [MESSAGES, list(second)]})


FILES: dict[str, tuple[bytes, int, str, str]] = {
    # Bytes that are not text.
    "latin-1": (b'{"text": "caf\xe9"}', 1, "", "not_utf8"),
    "half a character": (TEXT + b'{"text": "\xf0\x9f"}', 2, "", "not_utf8"),
    "overlong encoding": (TEXT + b'{"text": "\xc0\xaf"}', 2, "", "not_utf8"),
    "encoded surrogate": (TEXT + b'{"text": "\xed\xa0\x80"}', 2, "", "not_utf8"),
    "NUL": (TEXT + b'{"text": "\0"}', 2, "", "invalid_json"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), 1, "", "unsupported_file"),
    "UTF-16 without mark": ('{"text": "a"}'.encode("utf-16-le"), 1, "", "invalid_json"),
    "second byte order mark": (TEXT + b"\xef\xbb\xbf" + TEXT, 2, "", "invalid_json"),
    # Lines.
    "nothing": (b"", 1, "", "empty_file"),
    "blank lines": (b"\n \n", 1, "", "empty_file"),
    "blank line between": (TEXT + b"\n" + TEXT, 2, "", "blank_line"),
    "old Mac line ends": (TEXT.strip() + b"\r" + TEXT.strip(), 1, "", "invalid_json"),
    "cut off": (TEXT + CHAT[:-10], 2, "", "invalid_json"),
    "deep": (TEXT + b'{"text": ' + b"[" * 5000, 2, "", "invalid_json"),
    "many values": (TEXT + b'{"text": [' + b"1," * 60_000 + b"1]}", 2, "", "too_many_values"),
    "long number": (TEXT + b'{"text": ' + b"1" * 5000 + b"}", 2, "", "invalid_json"),
    "many messages": (
        json.dumps({"messages": MESSAGES * 501}).encode(),
        1,
        "messages",
        "too_many_messages",
    ),
    "many turns": (
        json.dumps({"conversations": [{"from": "gpt", "value": "a"}] * 1001}).encode(),
        1,
        "conversations",
        "too_many_messages",
    ),
    # Other kinds of files.
    "JSON array": (b'[{"text": "a"}, {"text": "b"}]', 1, "", "unsupported_file"),
    "JSON array over lines": (b'[\n {"text": "a"}\n]', 1, "", "unsupported_file"),
    "JSON over lines": (b'{\n "text": "a"\n}', 1, "", "unsupported_file"),
    "ZIP": (b"PK\x03\x04" + b"\0" * 30, 1, "", "unsupported_file"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 1, "", "unsupported_file"),
    "PDF": (b"%PDF-1.4\n", 1, "", "unsupported_file"),
    "bzip2": (b"BZh91AY&SY", 1, "", "unsupported_file"),
    "xz": (b"\xfd7zXZ\0", 1, "", "unsupported_file"),
    "Zstandard": (b"\x28\xb5\x2f\xfd", 1, "", "unsupported_file"),
    "SQLite": (b"SQLite format 3\0", 1, "", "unsupported_file"),
    "Arrow": (b"ARROW1\0\0", 1, "", "unsupported_file"),
    "HTML": (b"<html>Log in</html>", 1, "", "unsupported_file"),
    "CSV of other columns": (b"question,answer\na,b\n", 1, "", "unsupported_file"),
    # gzip.
    "gzip of a bad row": (gzip.compress(TEXT + CHAT), 2, "", "mixed_formats"),
    "gzip cut off": (gzip.compress(TEXT)[:-1], 2, "", "damaged_file"),
    "gzip magic": (b"\x1f\x8b", 1, "", "damaged_file"),
    "gzip and more": (gzip.compress(TEXT) + b"\n", 2, "", "damaged_file"),
    "gzip of gzip": (gzip.compress(gzip.compress(TEXT)), 1, "", "unsupported_file"),
    "gzip of CSV": (gzip.compress(b"text\na\n"), 1, "", "unsupported_file"),
    "gzip of nothing": (gzip.compress(b""), 1, "", "empty_file"),
    "gzip bomb": (gzip.compress(b" " * (20 << 20)), 1, "", "expands_too_much"),
    # CSV.
    "CSV without rows": (b"text\n", 1, "", "empty_file"),
    "CSV with an empty cell": (b'text\na\n""\n', 2, "text", "empty_field"),
    "CSV with a further column": (b"text,label\na,b\n", 1, "label", "unknown_field"),
    "CSV of two formats": (b"text,prompt\na,b\n", 1, "", "unknown_format"),
    "CSV with a column twice": (b"text,text\na,b\n", 1, "", "unknown_format"),
    "CSV without an answer": (b"prompt\na\n", 1, "completion", "missing_field"),
    "CSV with few cells": (b"prompt,completion\na,b\na\n", 2, "", "wrong_cell_count"),
    "CSV with many cells": (b"prompt,completion\na,b,c\n", 1, "", "wrong_cell_count"),
    "CSV with an open quote": (b'text\na\n"b\n', 2, "", "invalid_csv"),
    "CSV with a stray quote": (b'text\na\n"b"c\n', 2, "", "invalid_csv"),
    "CSV in latin-1": (b"text\ncaf\xe9\n", 1, "", "not_utf8"),
    "CSV of chats that are not JSON": (b"messages\nhello\n", 1, "messages", "invalid_json"),
    "CSV of chats that are no list": (b"messages\n1\n", 1, "messages", "wrong_type"),
    "CSV of a bad chat": (b'messages\n"[{""role"": 1}]"\n', 1, "messages[0].role", "bad_role"),
    # Parquet.
    "Parquet magic": (b"PAR1", 1, "", "damaged_file"),
    "Parquet cut off": (as_parquet({"text": ["a"]})[:-4], 1, "", "damaged_file"),
    "Parquet with names that are not UTF-8": (
        chats().replace(b"content", b"\xff" * 7),
        1,
        "",
        "damaged_file",
    ),
    "Parquet without rows": (as_parquet({"text": pa.array([], pa.string())}), 1, "", "empty_file"),
    "Parquet with a null": (as_parquet({"text": ["a", None]}), 2, "text", "missing_field"),
    "Parquet with an empty cell": (as_parquet({"text": ["a", ""]}), 2, "text", "empty_field"),
    "Parquet of numbers": (as_parquet({"text": [1]}), 1, "text", "wrong_type"),
    "Parquet of NaN": (as_parquet({"text": [float("nan")]}), 1, "", "invalid_json"),
    "Parquet of bytes": (as_parquet({"text": [b"a"]}), 1, "text", "wrong_type"),
    "Parquet with a further column": (
        as_parquet({"text": ["a"], "score": [1]}),
        1,
        "score",
        "unknown_field",
    ),
    "Parquet of other columns": (as_parquet({"a": ["b"]}), 1, "", "unknown_format"),
    "Parquet of a bad role": (
        chats({"role": "bot", "content": "a"}),
        2,
        "messages[0].role",
        "bad_role",
    ),
    "Parquet of an unanswered chat": (chats(MESSAGES[0]), 2, "messages", "no_assistant_message"),
}
"""Files, each with the line, the path and the code of its first problem."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def upload(lab: Lab, content: bytes) -> list[tuple[int, str, str]]:
    """Line, path and code of every problem that the refusal of a file names."""
    answer = lab.upload(content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_file"
    return [(one["line"], one["path"], one["code"]) for one in answer.json()["error"]["errors"]]


def test_there_are_three_hundred_rows_and_files() -> None:
    assert len(ROWS) >= 300
    assert len(FILES) >= 60


@pytest.mark.parametrize("bad", ROWS.values(), ids=list(ROWS))
def test_a_bad_row_is_reported_where_it_is(lab: Lab, bad: BadRow) -> None:
    content = "\n".join([bad.good, bad.row, bad.good]).encode()

    assert upload(lab, content) == [(2, bad.path, bad.code)]


@pytest.mark.parametrize(("content", "line", "path", "code"), FILES.values(), ids=list(FILES))
def test_a_bad_file_is_reported_where_it_is_bad(
    lab: Lab, content: bytes, line: int, path: str, code: str
) -> None:
    assert upload(lab, content)[0] == (line, path, code)


@pytest.mark.parametrize("good", sorted({row.good for row in ROWS.values()}))
def test_what_stands_around_a_bad_row_is_good(lab: Lab, good: str) -> None:
    assert lab.upload(good.encode()).status_code == 200
