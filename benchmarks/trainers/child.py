"""The two ends of a process that runs one task: `run_child` starts it, `main` is in it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.trainers.task import Run, Task, read_run

ROOT = Path(__file__).parents[2]
_TASK_NAME, _ANSWER_NAME, _LOG_NAME = "task.json", "answer.json", "log.txt"


class ChildFailedError(Exception):
    """A process of the benchmark did not end well; the message holds its last words."""


def run_module(module: str, task: Task, environment: Mapping[str, str]) -> Run:
    """Run the task in a fresh process of `python -m module`.

    Raises:
        ChildFailedError: it failed.
    """
    scratch = task.scratch_dir
    (scratch / _TASK_NAME).write_text(json.dumps(asdict(task)))
    command = [sys.executable, "-m", module, str(scratch)]
    wall_s, peak_bytes = run_and_wait(command, scratch, environment, on_line=lambda _: None)
    answer = read_run(json.loads((scratch / _ANSWER_NAME).read_text()))
    return replace(answer, wall_s=wall_s, peak_bytes=peak_bytes)


def run_and_wait(
    command: Sequence[str],
    scratch: Path,
    environment: Mapping[str, str],
    on_line: Callable[[bytes], None],
) -> tuple[float, int]:
    """Run a process to its end. Returns its wall time and its peak memory, in bytes.

    Args:
        command: to run from the root of the project.
        scratch: where it may write, and where what it says on standard error goes.
        environment: in place of this process's own.
        on_line: is given each line of its standard output as it comes.

    Raises:
        ChildFailedError: it did not end with 0.
    """
    began = time.perf_counter()
    with (scratch / _LOG_NAME).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**environment}, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            on_line(line)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last_words = (scratch / _LOG_NAME).read_text("utf-8", "replace")[-3000:]
        raise ChildFailedError(
            f"{' '.join(command)} ended with {process.returncode}:\n{last_words}"
        )
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def main(train: Callable[[Task], Run], arguments: list[str]) -> None:
    scratch = Path(arguments[0])
    content: dict[str, Any] = json.loads((scratch / _TASK_NAME).read_text())
    (scratch / _ANSWER_NAME).write_text(json.dumps(train(Task(**content)).as_json()))
