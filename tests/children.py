"""The training children of a service, as the locks of their jobs name them."""

from pathlib import Path

from worker.launch.locks import start_ticks


def find_children(data_dir: Path) -> dict[str, int]:
    """Process id of every child that runs, by the id of its job."""
    found: dict[str, int] = {}
    for lock in (data_dir / "work").glob("*.lock"):
        try:
            pid, ticks = map(int, lock.read_text().split())
        except (OSError, ValueError):
            continue  # it has just gone, or its holder is not written down yet
        if start_ticks(pid) == ticks:
            found[lock.stem] = pid
    return found
