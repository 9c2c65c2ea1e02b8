"""Runs the process that checks a table, and believes no more of it than it must."""

import os
import subprocess
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.core.dataset.checker import DatasetChecker, DatasetSummary
from app.core.dataset.file_kinds import FileKind
from app.core.dataset.formats import LineError
from app.core.machine.subprocesses import python_module, with_import_path

MEMORY_BYTES = 2 * 1024**3
"""Maximum address space of the process. Reading a row group of normal size takes a tenth."""

CPU_S = 300
"""Maximum processor time of the process in seconds, several times what the largest file takes."""

_WALL_S = 2 * CPU_S
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve address space
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "PATH": os.defpath,
}
"""The environment besides the import path, so that the process learns no secret of the API."""


def check_in_process(path: Path, kind: FileKind, *, wall_s: float = _WALL_S) -> DatasetSummary:
    """Check a table. A file that the process cannot cope with has a problem that says so."""
    command = python_module("app.core.dataset.tables.check", kind, str(path.resolve()))
    environment = {**_ENVIRONMENT, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with subprocess.Popen(  # noqa: S603 - our own module
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=with_import_path(environment),
        cwd="/",
    ) as process:
        try:
            answer, _ = process.communicate(timeout=wall_s)
        except subprocess.TimeoutExpired:
            process.kill()
            answer = b""
    try:
        if process.returncode == 0:
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
