"""Runs the process that checks a table, and believes no more of it than it must."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.core.dataset.checker import DatasetChecker, DatasetSummary
from app.core.dataset.file_kinds import FileKind
from app.core.dataset.formats import LineError
from app.core.machine.subprocesses import run_bounded

MEMORY_BYTES = 2 * 1024**3
"""Maximum address space of the process. Reading a row group of normal size takes a tenth."""

CPU_S = 300
"""Maximum processor time of the process in seconds, several times what the largest file takes."""

_WALL_S = 2 * CPU_S


def check_in_process(path: Path, kind: FileKind, *, wall_s: float = _WALL_S) -> DatasetSummary:
    """Check a table. A file that the process cannot cope with has a problem that says so."""
    module = "app.core.dataset.tables.check"
    answer = run_bounded(module, kind, str(path.resolve()), wall_s=wall_s)
    try:
        if answer is not None:
            return TypeAdapter(DatasetSummary).validate_json(answer)
    except ValidationError:
        pass
    checker = DatasetChecker()
    checker.stop(
        LineError(
            "table_too_large",
            f"The file could not be read with {MEMORY_BYTES // 2**30} GiB of memory in {CPU_S} "
            "seconds. Write smaller row groups, split the file, or upload it as JSONL.",
        )
    )
    return checker.finish()
