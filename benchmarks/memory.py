"""Peak memory of everything this process has started, while it runs."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.25


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
            each = [_read_bytes(pid) for pid in find_descendants(os.getpid())]
            # Of a page that several processes share, each counts its part.
            together = sum(proportional for _, proportional in each)
            largest = max((resident for resident, _ in each), default=0)
            peak.all_bytes = max(peak.all_bytes, together)
            peak.largest_bytes = max(peak.largest_bytes, largest)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stopping.set()
        thread.join()


def _read_bytes(pid: int) -> tuple[int, int]:
    """Resident bytes, and the process's part of them: what it shares is divided."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0  # it has just ended
    resident, proportional = (
        sum(map(int, re.findall(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)))
        for name in ("Rss", "Pss")
    )
    return resident * 1024, proportional * 1024


def find_descendants(root: int) -> list[int]:
    """All processes that a process has started, each before those that it has started."""
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
