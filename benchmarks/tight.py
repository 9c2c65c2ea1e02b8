"""A model of the shape of Qwen2.5-7B in little memory: trained, killed once, and resumed."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from app.core.job.child.job_spec import LOSS_LOG_NAME
from benchmarks.docstrings import choose_examples, write_rows
from benchmarks.large import prepare_model
from benchmarks.options import Options
from benchmarks.real_service import open_service, run_job
from benchmarks.trainers.child import ChildFailedError
from benchmarks.trainers.task import MAX_TOKENS

_GIB = 2**30
_STEPS = 10
_KILLED_AFTER = 5
"""Steps after which the training process is killed."""
_SAVE_S = "30"
"""Seconds between two saved states: about a step."""
_GROUPS = Path("/sys/fs/cgroup/memory")
"""Of version 1. With version 2, run the benchmark in a container with a limit, and `--memory 0`."""


def measure_tight(options: Options) -> dict[str, Any]:
    """Ten steps of one row of 512 tokens each, through the whole service."""
    installed = prepare_model(options, "7B")
    _forget(installed)
    rows = [{"messages": each.messages} for each in choose_examples(10, seed=0, kind="long")]
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as name:
        directory = Path(name)
        file = write_rows(directory / "rows.jsonl", [dict(row) for row in rows])
        with (
            _limited_to(options.memory * _GIB) as peak,
            open_service(directory / "service", installed, options, save_interval_s=_SAVE_S) as it,
            _killing_once(it.data_dir / "work") as killed,
        ):
            times = run_job(
                it,
                installed.name,
                file,
                steps=_STEPS,
                n_epochs=1,
                batch_size=1,
                context_length=MAX_TOKENS,
            )
            peak_bytes = peak()
    if not killed:
        raise ChildFailedError("The training process was not killed.")
    print(f"{times.ended_s:.0f} s, at most {peak_bytes / 1e9:.2f} GB", flush=True)
    return {
        "whole_s": times.ended_s,
        "steps": _STEPS,
        "limit_bytes": options.memory * _GIB,
        "peak_bytes": peak_bytes,
        "killed_after": killed[0],
    }


def describe(part: dict[str, Any]) -> tuple[str, str]:
    """Heading and text for the report."""
    limit, peak = part["limit_bytes"] / _GIB, part["peak_bytes"] / _GIB
    text = (
        "A model of the shape of Qwen2.5-7B (random weights, 15.2 GB in bfloat16) trains on rows "
        f"of {MAX_TOKENS} tokens. The whole service has {limit:.0f} GiB of memory, in a control "
        f"group. The training process was killed after step {part['killed_after']}, and the job "
        f"was resumed. From the request to a downloadable adapter, {part['steps']} steps took "
        f"{part['whole_s']:,.0f} s. At most {peak:.1f} GiB were used, with the pages of the "
        "model's files that were in memory."
    )
    return "7B parameters in little memory", text


def _forget(directory: Path) -> None:
    """Let the system forget the files of a directory.

    Their pages would otherwise count as memory of the group that has read or written them first.
    """
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _limited_to(limit: int) -> Iterator[Any]:
    """Put this process, and all that it starts, into a control group with so much memory.

    Yields a function that returns the most that the group has used: what is mapped from files
    counts, as far as it was in memory.
    """
    if not limit:
        yield lambda: 0
        return
    group = _GROUPS / f"tunery-bench-{os.getpid()}"
    before = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if ":memory:" in line
    )
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(limit))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield lambda: int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        (_GROUPS / before.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


@contextmanager
def _killing_once(work_dir: Path) -> Iterator[list[int]]:
    """Kill the training process after some steps. Yields a list that will have their number."""
    killed: list[int] = []
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(0.5):
            for log in work_dir.glob(f"*/*/{LOSS_LOG_NAME}"):
                steps = log.read_bytes().count(b"\n")
                if steps >= _KILLED_AFTER and _kill(log.parent):
                    killed.append(steps)
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        stopping.set()
        thread.join()


def _kill(directory: Path) -> bool:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if Path(process.cwd()) == directory:
                process.send_signal(signal.SIGKILL)
                time.sleep(1)
                return True
    return False
