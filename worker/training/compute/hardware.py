"""Speed of this machine's processor, and its free memory."""

import hashlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil
import torch
from pydantic import ValidationError

from app.core.job.frozen import Frozen

_NAME = "processor.json"
_SHAPE = (512, 1024, 1024)
"""Rows, inputs and outputs of the timed matrix product, like those of small models."""
_ROUNDS = 7
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables that limit the libraries to the instructions of an older processor."""


class Speeds(Frozen):
    """Speed of matrix products on one thread, in GFLOP/s."""

    float32: float
    bfloat16: float


def _measure() -> Speeds:
    """Time matrix products on one thread, for a fifth of a second. Starts no other thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Speeds(float32=_speed(torch.float32), bfloat16=_speed(torch.bfloat16))
    finally:
        torch.set_num_threads(threads)


def read_or_measure(cache: Path) -> Speeds:
    """The speeds of this processor, from `cache` if an earlier job has stored them there.

    Measurements differ a little. Jobs share one, so that they make the same choices.
    """
    path = cache / f"{_key()}-{_NAME}"
    with suppress(OSError, ValidationError):
        return Speeds.model_validate_json(path.read_bytes())
    speeds = _measure()
    with suppress(OSError):  # it is only a cache
        cache.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(f".{os.getpid()}")
        staging.write_text(speeds.model_dump_json(), encoding="utf-8")
        staging.replace(path)
    return speeds


def _speed(dtype: torch.dtype) -> float:
    rows, inputs, outputs = _SHAPE
    a, b = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    best_s = float("inf")
    for _ in range(_ROUNDS):
        began_s = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * rows * inputs * outputs / best_s / 1e9


def _key() -> str:
    facts = [torch.__version__, platform.machine(), _processor()]
    facts += [os.environ.get(name, "") for name in _ISA_VARIABLES]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Model and instruction sets of the first processor, where Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(
        line for line in lines.splitlines() if line.startswith(("model name", "flags", "Features"))
    )


def free_memory(*, root: Path = Path("/")) -> int:
    """Bytes of memory left on this machine, or within the container's limit if that is less.

    Args:
        root: directory of `proc` and `sys`.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups(root)])


def free_gpu_memory() -> int:
    """Bytes of memory left on the GPU that this process uses."""
    free, _ = torch.cuda.mem_get_info()
    return free


def anonymous_memory() -> int:
    """Bytes that this process has in memory and not on the disk, shared with its parent or not."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left in this process's control group and in each group around it."""
    for directory, (limit_name, used_name, idle_name) in _groups(root):
        # A file is missing where the kernel sets no limit, and "max" stands for none.
        with suppress(OSError, ValueError):
            limit = int((directory / limit_name).read_text("ascii"))
            used = int((directory / used_name).read_text("ascii"))
            statistics = (directory / "memory.stat").read_text("ascii").splitlines()
            idle = dict(line.split() for line in statistics).get(idle_name, 0)
            yield max(0, limit - used + int(idle))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Directories of the groups, and the names of their files in cgroups version 1 or 2."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            base = top
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = top / "memory"
        else:
            continue
        group = PurePosixPath(name.lstrip("/"))
        for path in (group, *group.parents):
            yield base / path, names
