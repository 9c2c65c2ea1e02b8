"""CSV and Parquet: their rows, and what no process may crash on."""

import csv
import io
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.core.dataset.checker import DatasetSummary
from app.core.dataset.file_kinds import FileKind, find_kind
from app.core.dataset.formats import DatasetFormat, LineError
from app.core.dataset.limits import MAX_LINE_BYTES
from app.core.dataset.tables.check import check_table
from app.core.dataset.tables.parquet import read_parquet
from app.core.dataset.tables.process import check_in_process
from app.core.dataset.tables.rows import read_rows

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
CALLS = [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}]


def as_csv(*rows: list[str], delimiter: str = ",") -> bytes:
    target = io.StringIO()
    csv.writer(target, delimiter=delimiter).writerows(rows)
    return target.getvalue().encode()


def as_parquet(table: pa.Table | list[dict[str, Any]], **options: Any) -> bytes:
    if isinstance(table, list):
        table = pa.Table.from_pylist(table)
    target = io.BytesIO()
    pq.write_table(table, target, **options)
    return target.getvalue()


def read(content: bytes) -> list[Any]:
    return list(read_rows(io.BytesIO(content), find_kind(content)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table"


def check(path: Path, content: bytes) -> DatasetSummary:
    path.write_bytes(content)
    return check_table(path, find_kind(content))


def problems(summary: DatasetSummary) -> list[tuple[int, str, str]]:
    return [(one.line, one.path, one.code) for one in summary.problems]


def test_a_csv_row_may_have_any_text() -> None:
    cell = 'a "b"; c,\nd\te 日本'

    assert read(as_csv(["prompt", "completion"], ["", cell])) == [
        {"prompt": "", "completion": cell}
    ]


def test_problems_among_many_plain_rows_have_their_lines(path: Path) -> None:
    rows = [["prompt", "completion"], *[["", "a"]] * 100]
    rows[50] = ["a", ""]
    content = as_csv(*rows) + b'"not closed'

    summary = check(path, content)

    assert problems(summary) == [(50, "completion", "empty_field"), (101, "", "invalid_csv")]
    assert summary.examples == 99


def test_csv_has_lists_as_json() -> None:
    content = as_csv(["messages", "tools"], [json.dumps(CHAT["messages"]), ""])

    assert read(content) == [CHAT | {"tools": None}]


def test_parquet_rows_are_those_that_were_written(path: Path) -> None:
    rows = [CHAT, {"messages": [*CHAT["messages"], {"role": "assistant", "tool_calls": CALLS}]}]

    summary = check(path, as_parquet(rows, row_group_size=1))

    assert read(as_parquet(rows)) == rows
    assert (summary.format, summary.examples) == (DatasetFormat.MESSAGES, 2)
    assert summary.uses_tools


def test_a_dictionary_column_is_text() -> None:
    column = pa.array(["a", "b", "a"]).dictionary_encode()

    assert read(as_parquet(pa.table({"text": column}))) == [{"text": c} for c in "aba"]


def test_a_problem_names_row_and_column(path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a"}, {"prompt": "a", "completion": ""}]

    assert problems(check(path, as_parquet(rows))) == [
        (2, "completion", "missing_field"),
        (3, "completion", "empty_field"),
    ]


@pytest.mark.parametrize("kind", [FileKind.CSV, FileKind.PARQUET])
def test_a_column_that_no_format_has_is_reported_once(path: Path, kind: FileKind) -> None:
    rows = [{"text": "a", "score": "1"}] * 3
    content = as_parquet(rows) if kind is FileKind.PARQUET else b"text,score\na,1\nb,2\n"

    assert problems(check(path, content)) == [(1, "score", "unknown_field")]


def test_text_that_is_not_utf8_is_found_in_its_row(path: Path) -> None:
    text = pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False)

    assert problems(check(path, as_parquet(pa.table({"text": text})))) == [(2, "text", "not_utf8")]


def test_a_row_group_that_is_too_large_is_refused_unread() -> None:
    content = as_parquet([{"text": f"{i:0100}"} for i in range(100)])

    with pytest.raises(LineError, match="Row group 1 has") as refusal:
        read_parquet(io.BytesIO(content), max_row_group_bytes=1000)

    assert refusal.value.code == "table_too_large"


def test_a_cell_repeated_by_a_dictionary_is_refused_before_it_fills_the_memory(path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] * 5000, pa.int32()), pa.array(["x" * (MAX_LINE_BYTES // 4)])
    )

    summary = check_bounded(path, as_parquet(pa.table({"text": column})))

    assert {one.code for one in summary.problems} <= {"expands_too_much", "table_too_large"}
    assert summary.problems


def check_bounded(path: Path, content: bytes) -> DatasetSummary:
    path.write_bytes(content)
    return check_in_process(path, find_kind(content))


def test_the_process_says_what_the_check_says(path: Path) -> None:
    content = as_csv(["prompt", "completion"], ["a", "b"], ["a", ""])

    assert check_bounded(path, content) == check(path, content)


def test_a_process_that_needs_too_long_is_ended(path: Path) -> None:
    path.write_bytes(b"text\na\n")

    summary = check_in_process(path, FileKind.CSV, wall_s=0.01)

    assert problems(summary) == [(1, "", "table_too_large")]


def test_parquet_without_pyarrow_says_what_is_missing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    (problem,) = check_bounded(path, as_parquet([CHAT])).problems

    assert problem.code == "unsupported_file"
    assert "install tunery[worker]" in problem.message


@pytest.mark.parametrize(
    "content",
    [
        b"PAR1",
        b"PAR1" + b"\0" * 100 + b"PAR1",
        b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1",
        as_parquet([CHAT])[:-20],
        as_parquet([CHAT]).replace(b"content", b"\xff" * 7),
        as_parquet(pa.table({"text": pa.array([], pa.string())})),
        as_parquet(pa.table({"text": [b"bytes"]})),
        as_parquet(pa.table({"text": pa.array([1], pa.timestamp("s"))})),
        as_parquet(pa.table({"text": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))})),
        as_parquet(pa.table({f"c{i}": ["a"] for i in range(1001)})),
    ],
    ids=[
        "magic only",
        "zeros",
        "huge footer",
        "cut off",
        "changed names",
        "no rows",
        "bytes",
        "times",
        "map",
        "many columns",
    ],
)
def test_hostile_parquet_is_a_problem_of_the_file(path: Path, content: bytes) -> None:
    assert check_bounded(path, content).problems


def test_deeply_nested_types_are_refused(path: Path) -> None:
    nested = pa.string()
    for _ in range(70):
        nested = pa.list_(nested)

    assert check_bounded(
        path, as_parquet(pa.table({"messages": pa.array([None], nested)}))
    ).problems
