"""Who this worker is to the kernel, and whether another one on this machine still lives.

A process id alone is no answer: ids are used again, another machine has the same, and so has
another container. With the boot, the namespace and the time at which the process was started it
names one process for ever.
"""

import os
import platform
from pathlib import Path

from app.core.db.repositories.workers import WorkerIdentity

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TICKS = 19
"""Index of the start time among the fields of `/proc/PID/stat` after the command's name.

Source: `proc_pid_stat(5)`.
"""


def this_host() -> str:
    """This boot of this machine, and the namespace in which its process ids mean something."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink()
        return f"{_BOOT_ID.read_text().strip()} {namespace}"
    except OSError:  # not Linux
        return platform.node()


def this_worker(worker_id: str) -> WorkerIdentity:
    pid = os.getpid()
    return WorkerIdentity(worker_id, this_host(), pid, process_started=start_ticks(pid) or 0)


def is_alive(worker: WorkerIdentity) -> bool:
    """Whether that very process still runs; it must be one of this host."""
    return start_ticks(worker.pid) == worker.process_started


def start_ticks(pid: int) -> int | None:
    """When the kernel started the process, in clock ticks since boot; None when there is none.

    Where there is no /proc, 0 stands for any process that runs.
    """
    if not _BOOT_ID.exists():
        return 0 if _exists(pid) else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # a command's name may hold anything
    return None if fields[0] == "Z" else int(fields[_START_TICKS])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
