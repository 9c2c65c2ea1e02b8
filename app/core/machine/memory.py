"""Memory of this machine, or of the container that this process is in if that has less."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes."""

    total: int
    """What there is, free or in use."""
    free: int

    def limited_to(self, most: int | None) -> "Memory":
        """The same with so many bytes at most. None for no limit."""
        if most is None:
            return self
        return Memory(total=min(self.total, most), free=min(self.free, most))


_CACHED = ("active_file", "inactive_file")

PLENTY = Memory(total=2**62, free=2**62)
"""Memory for any job."""


def measure_memory(*, root: Path = Path("/")) -> Memory:
    """Measure the memory that this process may use.

    Args:
        root: directory of `proc` and `sys`.
    """
    machine, groups = psutil.virtual_memory(), list(_limited_groups(root))
    return Memory(
        total=min([int(machine.total), *(group.total for group in groups)]),
        free=min([int(machine.available), *(group.free for group in groups)]),
    )


def _limited_groups(root: Path) -> Iterator[Memory]:
    """Memory of this process's control group and of each around it, where they have a limit."""
    for directory, (limit_name, used_name, prefix) in _groups(root):
        # A file is missing where the kernel sets no limit, and "max" stands for none.
        with suppress(OSError, ValueError):
            limit = int((directory / limit_name).read_text("ascii"))
            used = int((directory / used_name).read_text("ascii"))
            statistics = (directory / "memory.stat").read_text("ascii").splitlines()
            sizes = dict(line.split() for line in statistics)
            # The kernel gives up pages of files for others' sake, also those read recently: a base
            # model that was mapped a moment ago must not keep the next job from starting.
            cached = sum(int(sizes.get(prefix + name, 0)) for name in _CACHED)
            yield Memory(total=limit, free=max(0, limit - used + cached))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Directories of the groups, and names in them, of cgroups version 1 or 2.

    The names are two files, and the prefix in `memory.stat` of what counts groups inside as well.
    """
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "")
            base = top
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            base = top / "memory"
        else:
            continue
        group = PurePosixPath(name.lstrip("/"))
        for path in (group, *group.parents):
            yield base / path, names
