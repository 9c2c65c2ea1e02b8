"""Speed of this machine's processor, memory of its GPU, and of this process."""

import hashlib
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from pydantic import Field, ValidationError

from app.core.job.frozen import Frozen
from app.core.machine.memory import Memory

_NAME = "processor.json"
_SHAPE = (512, 1024, 1024)
"""Rows, inputs and outputs of the timed matrix product, like those of small models."""
_ROUNDS = 7
_MEASUREMENTS = 5
"""Number of measurements after which the speeds are believed, however implausible they are."""
_SLOWEST = 5.0
"""GFLOP/s in float32 that one thread of any processor with AVX2 or NEON exceeds."""
_FASTEST = 1e6
_RATIOS = (0.02, 20.0)
"""Speed in bfloat16 over that in float32: emulated without instructions for it, and with tiles."""

_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables that limit the libraries to the instructions of an older processor."""


class Speeds(Frozen):
    """Speed of matrix products on one thread, in GFLOP/s."""

    float32: float = Field(gt=0, le=_FASTEST)
    bfloat16: float = Field(gt=0, le=_FASTEST)

    def best_of(self, other: "Speeds") -> "Speeds":
        """The higher of both speeds in each dtype: other programs only ever make them lower."""
        return Speeds(
            float32=max(self.float32, other.float32), bfloat16=max(self.bfloat16, other.bfloat16)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the duration and the plan of a job depend on, besides the job."""

    speeds: Speeds
    threads: int
    total_bytes: int
    """Memory for jobs of the machine or of its GPU, free or not."""
    has_gpu: bool | None = None
    """Whether it has a GPU. None to ask torch."""


class _Measured(Frozen):
    """The speeds as they are stored, with what tells whether they can be relied on."""

    speeds: Speeds
    is_quiet: bool
    """Whether the processor had nothing else to do during at least one measurement."""
    measurements: int = Field(ge=1)

    @property
    def is_reliable(self) -> bool:
        return self.measurements >= _MEASUREMENTS or (self.is_quiet and self._is_plausible)

    @property
    def _is_plausible(self) -> bool:
        speeds = self.speeds
        ratio = speeds.bfloat16 / speeds.float32
        return speeds.float32 >= _SLOWEST and _RATIOS[0] <= ratio <= _RATIOS[1]


def _measure() -> Speeds:
    """Time matrix products on one thread, for a fifth of a second. Starts no other thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Speeds(float32=_speed(torch.float32), bfloat16=_speed(torch.bfloat16))
    finally:
        torch.set_num_threads(threads)


def _is_quiet() -> bool:
    """Whether the processor had idle cores in the last minute, besides that of this process."""
    return os.getloadavg()[0] <= (os.cpu_count() or 1)


def read_or_measure(
    cache: Path,
    *,
    measure: Callable[[], Speeds] = _measure,
    is_quiet: Callable[[], bool] = _is_quiet,
) -> Speeds:
    """The speeds of this processor, from `cache` if earlier jobs have stored reliable ones there.

    Measurements differ a little. Jobs share one, so that they make the same choices. It is repeated
    by the next jobs if it is implausible or other programs were busy; the highest speeds count.

    Args:
        cache: directory of the stored speeds. It need not exist.
        measure: measures the speeds.
        is_quiet: whether the processor has nothing else to do.
    """
    path = cache / f"{_key()}-{_NAME}"
    known = None
    with suppress(OSError, ValidationError):
        known = _Measured.model_validate_json(path.read_bytes())
        if known.is_reliable:
            return known.speeds
    speeds, quiet = measure(), is_quiet()
    new = _Measured(
        speeds=speeds.best_of(known.speeds) if known else speeds,
        is_quiet=quiet or (known is not None and known.is_quiet),
        measurements=1 + (known.measurements if known else 0),
    )
    with suppress(OSError):  # it is only a cache
        cache.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(f".{os.getpid()}")
        staging.write_text(new.model_dump_json(), encoding="utf-8")
        staging.replace(path)
    return new.speeds


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
