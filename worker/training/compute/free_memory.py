"""How much memory this process may still take."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil
import torch


def free_memory(*, root: Path = Path("/")) -> int:
    """Bytes that can be taken: what the machine has left, or a container's limit leaves, if less.

    Args:
        root: where `proc` and `sys` are found.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups(root)])


def free_gpu_memory() -> int:
    """Bytes that can be taken of the GPU that this process uses."""
    free, _ = torch.cuda.mem_get_info()
    return free


def anonymous_memory() -> int:
    """Bytes that this process has in memory and nowhere else, shared with its parent or not."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left to this process's control group and to each that it is part of."""
    for directory, (limit_name, used_name, idle_name) in _groups(root):
        # A file is missing where the kernel sets no limit, and "max" stands for none.
        with suppress(OSError, ValueError):
            limit = int((directory / limit_name).read_text("ascii"))
            used = int((directory / used_name).read_text("ascii"))
            yield max(0, limit - used + _read_number(directory / "memory.stat", idle_name))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Directories of groups, with the names under which version 1 or 2 of them says things."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            base = top
        elif "memory" in controllers.split(","):
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
            base = top / "memory"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for one in (group, *group.parents):
            yield base / one, names


def _read_number(table: Path, name: str) -> int:
    """A number from lines of `name number`."""
    for line in table.read_text("ascii").splitlines():
        key, _, number = line.partition(" ")
        if key == name:
            return int(number)
    return 0
