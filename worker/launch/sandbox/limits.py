"""Resource limits, which hold for the process and for each that it starts."""

import resource
from contextlib import suppress
from pathlib import Path

from worker.launch.sandbox.confinement import Limits

_OOM_SCORE = "500"
"""Makes the kernel, when memory runs out, kill a training process before worker and API."""


def limit_resources(limits: Limits) -> None:
    """Lower the limits of this process, for good once it has no privileges.

    Raises:
        OSError: it could not be done.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, "ascii")
    chosen = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NPROC: limits.processes,
    }
    if limits.memory_bytes is not None:
        chosen[resource.RLIMIT_DATA] = _private_memory() + limits.memory_bytes
    for kind, value in chosen.items():
        _, hard = resource.getrlimit(kind)
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lower, lower))


def _private_memory() -> int:
    """Bytes that count against RLIMIT_DATA already."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmData:"):
            return 1024 * int(line.split()[1])
    return 0


def available_memory() -> int:
    """Bytes that the machine can give without swapping."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/meminfo has no MemAvailable")


def count_threads(user: int) -> int:
    """Threads that the user has on this machine now, those of its own processes included."""
    threads = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if process.stat().st_uid == user:
                threads += (process / "task").stat().st_nlink - 2
    return threads
