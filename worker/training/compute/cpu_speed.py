"""What this processor can do, measured once and remembered."""

import hashlib
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

_NAME = "processor.json"
_SHAPE = (512, 1024, 1024)
"""Rows, inputs and outputs of the product that is timed: like those of small models."""
_ROUNDS = 7
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""With these, a person holds the libraries to what an older processor could do."""


class Speeds(BaseModel):
    """Of matrix products on one thread, in GFLOP/s."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    float32: float
    bfloat16: float


def measure() -> Speeds:
    """Time matrix products on one thread, for a fifth of a second. Starts no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Speeds(float32=_speed(torch.float32), bfloat16=_speed(torch.bfloat16))
    finally:
        torch.set_num_threads(threads)


def read_or_measure(cache: Path) -> Speeds:
    """The speeds of this processor, from `cache` if an earlier job has put them there.

    Measured again for each job, they would differ a little, and with them what is chosen by them.
    """
    path = cache / f"{_key()}-{_NAME}"
    with suppress(OSError, ValidationError):
        return Speeds.model_validate_json(path.read_bytes())
    speeds = measure()
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
    """The model and the instruction sets of the first processor, where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(
        line for line in lines.splitlines() if line.startswith(("model name", "flags", "Features"))
    )
