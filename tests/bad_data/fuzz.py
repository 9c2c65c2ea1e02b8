"""Mutates datasets of every kind, and looks for one that the checks do not survive.

    python -m tests.bad_data.fuzz --minutes 10

Whatever the bytes are, the check must end in time, without an exception, with the same verdict
however the bytes are cut; and training must be able to read what was accepted. Parquet is checked
in a forked process with limits, as in the service, so a crash of its native code is counted only.
"""

import argparse
import gzip
import io
import json
import os
import random
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from app.core.dataset.checker import DatasetSummary
from app.core.dataset.file_check import FileChecker
from app.core.dataset.file_kinds import FileKind
from app.core.dataset.reading import read_examples
from app.core.dataset.tables.check import check_table
from app.core.dataset.tables.process import MEMORY_BYTES
from tests.bad_data.test_bad_data import FILES, MESSAGES, ROWS, as_parquet

MAX_S = 10.0
MAX_FILE_BYTES = 10_000
MAX_MESSAGE = 1000
_FOUND, _SURVIVED = 1, 0
_TOKENS = (
    b'"', b"\\", b"\n", b"\r", b",", b";", b"\t", b"{", b"}", b"[", b"]", b":", b"null", b"1e999",
    b"-0", b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\0", b'""', b"[]", b"{}", b"true",
    b'"messages"', b'"role"', b'"assistant"', b'"content"', b'"tool_calls"', b'"function_call"',
    b'"tools"', b'"weight"', b'"text"', b'"conversations"', b'"from"', b'"value"', b'"chosen"',
)  # fmt: skip


def build_corpus() -> list[bytes]:
    """Good and bad files of all kinds, which are mutated and joined."""
    rows = [row.row.encode() + b"\n" for row in ROWS.values()]
    good = sorted({row.good.encode() + b"\n" for row in ROWS.values()})
    good += [
        b"prompt,completion\na,b\n",
        b'messages;tools\n"[{""role"": ""assistant"", ""content"": ""a""}]";\n',
        as_parquet({"messages": [MESSAGES] * 3}),
        as_parquet({"instruction": ["a"], "input": [None], "output": ["b"]}),
    ]
    files = [content for content, *_ in FILES.values() if len(content) < MAX_FILE_BYTES]
    return rows + files + good * (len(rows) // len(good))


def mutate(chance: random.Random, corpus: list[bytes]) -> bytes:
    content = chance.choice(corpus)
    before = content * chance.choice((0, 0, 1, 2))  # the format is settled, which is another path
    for _ in range(chance.randint(0, 4)):
        content = chance.choice(_MUTATIONS)(chance, content)
    content = before + content
    return gzip.compress(content) if chance.random() < 0.1 else content


def _insert(chance: random.Random, content: bytes) -> bytes:
    at = chance.randint(0, len(content))
    return content[:at] + chance.choice(_TOKENS) + content[at:]


def _cut(chance: random.Random, content: bytes) -> bytes:
    start = chance.randint(0, len(content))
    return content[:start] + content[start + chance.randint(1, 20) :]


def _flip(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4) if changed else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _repeat(chance: random.Random, content: bytes) -> bytes:
    start = chance.randint(0, len(content))
    piece = content[start : start + chance.randint(1, 50)]
    return content[:start] + piece * chance.choice((2, 5, 200)) + content[start:]


def _replace_value(chance: random.Random, content: bytes) -> bytes:
    """Put another value in the place of a string, as JSON."""
    parts = content.split(b'"')
    if len(parts) < 3:
        return content
    value = chance.choice((1, None, [], {}, "", "x" * 200, [{}], 1.5, {"a": None}, "\0"))
    at = chance.randrange(1, len(parts), 2)
    tail = b'"'.join(parts[at + 1 :])
    return b'"'.join(parts[:at]) + json.dumps(value).encode() + tail


_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _insert,
    _cut,
    _flip,
    _repeat,
    _replace_value,
    _replace_value,
    _replace_value,
)


def verdict(content: bytes, cuts: list[int]) -> tuple[FileKind | None, DatasetSummary]:
    """What is found in a file that arrives in pieces."""
    checker = FileChecker()
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        checker.feed(content[start:end])
    summary = checker.finish()
    return checker.table, summary


def examine(chance: random.Random, content: bytes, scratch: Path) -> str:
    """Check one file, and what the check promises. Returns what became of it."""
    began_s = time.monotonic()
    cuts = sorted(chance.randint(0, len(content)) for _ in range(chance.randint(0, 3)))
    table, summary = verdict(content, cuts)
    assert verdict(content, []) == (table, summary), "the verdict depends on how it was cut"
    if table is FileKind.PARQUET:
        return _in_fork(content, scratch)
    if table is not None:
        scratch.write_bytes(content)
        summary = check_table(scratch, table)
    return _judge(content, summary, time.monotonic() - began_s)


def _judge(content: bytes, summary: DatasetSummary, took_s: float) -> str:
    assert took_s < MAX_S, f"the check took {took_s:.0f} s"
    for problem in summary.problems:
        assert problem.line >= 1
        assert problem.message
        assert len(problem.message) < MAX_MESSAGE
    if summary.problems:
        return "refused"
    assert summary.format is not None
    examples = list(read_examples(io.BytesIO(content)))
    assert len(examples) == summary.examples, "training reads other examples"
    return "accepted"


def _in_fork(content: bytes, scratch: Path) -> str:
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            scratch.write_bytes(content)
            began_s = time.monotonic()
            summary = check_table(scratch, FileKind.PARQUET)
            _judge(content, summary, time.monotonic() - began_s)
        except BaseException:
            traceback.print_exc()
            os._exit(_FOUND)
        os._exit(_SURVIVED)
    _, status = os.waitpid(child, 0)
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == _FOUND), "see above"
    return "Parquet survived" if status == 0 else "Parquet crashed its process"


def run(*, seed: int, seconds: float, count: int | None = None) -> Counter[str]:
    """Examine files for so long, or so many.

    Raises:
        AssertionError: a promise was broken; the note has the file.
    """
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    corpus = build_corpus()
    outcomes: Counter[str] = Counter()
    end_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory) / "file"
        while time.monotonic() < end_s and (count is None or outcomes.total() < count):
            content = mutate(chance, corpus)
            try:
                outcomes[examine(chance, content, scratch)] += 1
            except BaseException as error:
                error.add_note(f"File {outcomes.total()} of seed {seed}: {content[:2000]!r}")
                raise
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    outcomes = run(seed=options.seed, seconds=60 * options.minutes)
    print(f"Seed {options.seed}: {outcomes.total():,} files, nothing found. {dict(outcomes)}")


if __name__ == "__main__":
    main()
