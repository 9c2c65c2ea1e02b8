"""Speed of this machine's processor, memory of its GPU, and of this process."""

import hashlib
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from pydantic import ValidationError

from app.core.job.frozen import Frozen
from app.core.machine.memory import Memory

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


def measure_gpu_memory() -> Memory:
    """Measure the memory of the GPU that this process uses."""
    free, total = torch.cuda.mem_get_info()
    return Memory(total=total, free=free)


def anonymous_memory() -> int:
    """Bytes that this process has in memory and not on the disk, shared with its parent or not."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))
