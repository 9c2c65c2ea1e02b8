"""How fast datasets of every format are checked, in processor time and without the network."""

import csv
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.core.dataset.file_check import FileChecker
from app.core.dataset.tables.check import check_table
from benchmarks.uploads import MIB, build_chat, build_pair, build_texts

Row = dict[str, Any]

CHUNK_BYTES = 256 * 1024
ROW_GROUP_ROWS = 10_000


def message(role: str, text: str) -> Row:
    return {"role": role, "content": text}


SHORT_ROWS: dict[str, Callable[[str, str], Row]] = {
    "short conversations": lambda ask, tell: {
        "messages": [message("user", ask), message("assistant", tell)]
    },
    "text": lambda ask, tell: {"text": ask + tell},
    "prompt and completion": lambda ask, tell: {"prompt": ask, "completion": tell},
    "instruction": lambda ask, tell: {"instruction": ask, "input": "", "output": tell},
    "ShareGPT": lambda ask, tell: {
        "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": tell}]
    },
    "preference": lambda ask, tell: {"prompt": ask, "chosen": tell, "rejected": tell[1:] + "."},
}


def build_rows(shape: str, mib: float) -> list[Row]:
    chance = random.Random(0)  # noqa: S311 - nothing secret
    texts = build_texts(chance, 5000)
    rows: list[Row] = []
    size = 0
    while size < mib * MIB:
        if shape in SHORT_ROWS:
            rows.append(SHORT_ROWS[shape](*map(str, build_pair(chance, texts, len(rows)).values())))
        else:
            rows.append(build_chat(chance, texts, len(rows)))
        size += len(json.dumps(rows[-1]))
    return rows


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    lines = (json.dumps(row, ensure_ascii=bool(i % 2)) + "\n" for i, row in enumerate(rows))
    path.write_text("".join(lines), "utf-8")


def write_gzip(path: Path, rows: Sequence[Row]) -> None:
    write_jsonl(path, rows)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(rows[0])
        for row in rows:
            cells = row.values()
            writer.writerow(cell if isinstance(cell, str) else json.dumps(cell) for cell in cells)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=ROW_GROUP_ROWS)


WRITERS = {"JSONL": write_jsonl, "gzip": write_gzip, "CSV": write_csv, "Parquet": write_parquet}
EXPANDED = ("gzip", "Parquet")
"""Kinds of files whose size says little. That of the same rows as JSONL counts."""


def check(path: Path, *, examples: int) -> float:
    """Check a file. Returns the seconds of processor time that it takes."""
    began = time.process_time()
    checker = FileChecker()
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            checker.feed(chunk)
    summary = checker.finish()
    if checker.table is not None:
        summary = check_table(path, checker.table)
    took_s = time.process_time() - began
    assert (summary.examples, summary.problems) == (examples, [])
    return took_s


def measure(*, mib: float, rounds: int) -> None:
    """Print the best MiB per second of every format and kind of file."""
    print(" ".join([" " * 22, *(f"{kind:>8}" for kind in WRITERS)]))
    for shape in ("conversations", *SHORT_ROWS):
        rows = build_rows(shape, mib)
        speeds: list[str] = []
        with tempfile.TemporaryDirectory() as name:
            for kind, write in WRITERS.items():
                write(Path(name) / kind, rows)
            for kind in WRITERS:
                size = (Path(name) / ("JSONL" if kind in EXPANDED else kind)).stat().st_size
                cpu_s = min(check(Path(name) / kind, examples=len(rows)) for _ in range(rounds))
                speeds.append(f"{size / MIB / cpu_s:8.0f}")
        print(" ".join([f"{shape:22}", *speeds]))
