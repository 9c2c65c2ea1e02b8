"""Peak memory of everything this process has started, while it runs."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.25
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Peak:
    all_bytes: int = 0
    """Of all processes together."""
    largest_bytes: int = 0
    """Of the one with the most."""


@contextmanager
def watch_memory() -> Iterator[Peak]:
    """Sample the memory of all descendants of this process."""
    peak, stopping = Peak(), threading.Event()

    def sample() -> None:
        while not stopping.wait(_SAMPLE_S):
            each = [_read_pages(pid) for pid in _find_descendants(os.getpid())]
            # Files that are mapped are in memory once, however many processes count them.
            private = sum(resident - shared for resident, shared in each)
            together = private + max((shared for _, shared in each), default=0)
            largest = max((resident for resident, _ in each), default=0)
            peak.all_bytes = max(peak.all_bytes, together * _PAGE_BYTES)
            peak.largest_bytes = max(peak.largest_bytes, largest * _PAGE_BYTES)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stopping.set()
        thread.join()


def _read_pages(pid: int) -> tuple[int, int]:
    """Resident pages, and those of them that belong to files."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0, 0  # it has just ended
    return int(resident), int(shared)


def _find_descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found
