"""Test the tester: the disk keeps what was synced, and forgets what it is allowed to forget."""

import mmap
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from app.core.machine.durable import sync
from tests.powercut.machine import Machine

SEEDS = 30


def prove_that_the_disk_forgets(directory: Path) -> int:
    """Cut the power of small disks; returns how often.

    Raises:
        AssertionError: the disk is not what it should be, so nothing found with it counts.
    """
    for number, (prepare, found) in enumerate(_CASES):
        for writes_back in (True, False):
            machine = Machine(directory / f"{number}-{writes_back}")
            try:
                machine.start(writes_back=writes_back)
                prepare(machine.root)
                machine.cut()
                machine.start()
                listing = _list(machine.root)
                assert listing == found, f"{prepare.__name__}: {listing}, not {found}"
            finally:
                machine.destroy()
    _prove_that_luck_decides(directory)
    return 2 * len(_CASES) + SEEDS


def _write(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    path.write_bytes(content)
    if is_synced:
        sync(path)


def _all_is_synced(root: Path) -> None:
    (root / "a").mkdir()
    _write(root / "a/file", b"bytes")
    sync(root / "a")
    sync(root)


def _bytes_are_not_synced(root: Path) -> None:
    _write(root / "file", b"bytes", is_synced=False)
    sync(root)


def _a_name_is_not_synced(root: Path) -> None:
    _write(root / "file", b"bytes")


def _the_name_of_a_directory_is_not_synced(root: Path) -> None:
    (root / "a").mkdir()
    _write(root / "a/file", b"bytes")
    sync(root / "a")


def _more_bytes_are_not_synced(root: Path) -> None:
    _write(root / "file", b"old bytes")
    sync(root)
    _write(root / "file", b"new", is_synced=False)


def _a_rename_is_not_synced(root: Path) -> None:
    _write(root / "old", b"bytes")
    sync(root)
    (root / "old").rename(root / "new")


def _a_rename_is_synced(root: Path) -> None:
    _a_rename_is_not_synced(root)
    sync(root)


def _a_rename_into_another_directory_is_synced_there(root: Path) -> None:
    (root / "a").mkdir()
    _write(root / "old", b"bytes")
    sync(root)
    (root / "old").rename(root / "a/new")
    sync(root / "a")


def _a_deletion_is_not_synced(root: Path) -> None:
    _write(root / "file", b"bytes")
    sync(root)
    (root / "file").unlink()


def _two_mappings_are_one_memory(root: Path) -> None:
    """As SQLite's `-shm` file needs it."""
    _write(root / "file", bytes(4096))
    with (root / "file").open("r+b") as one, (root / "file").open("r+b") as other:
        with mmap.mmap(one.fileno(), 4096) as first, mmap.mmap(other.fileno(), 4096) as second:
            first[:5] = b"bytes"
            assert second[:5] == b"bytes"
            os.fsync(other.fileno())
        other.truncate(5)
        os.fsync(other.fileno())
    sync(root)


_CASES: tuple[tuple[Callable[[Path], None], dict[str, bytes | None]], ...] = (
    (_all_is_synced, {"a": None, "a/file": b"bytes"}),
    (_bytes_are_not_synced, {"file": b""}),
    (_a_name_is_not_synced, {}),
    (_the_name_of_a_directory_is_not_synced, {}),
    (_more_bytes_are_not_synced, {"file": b"old bytes"}),
    (_a_rename_is_not_synced, {"old": b"bytes"}),
    (_a_rename_is_synced, {"new": b"bytes"}),
    (
        _a_rename_into_another_directory_is_synced_there,
        {"a": None, "a/new": b"bytes", "old": b"bytes"},
    ),
    (_a_deletion_is_not_synced, {"file": b"bytes"}),
    (_two_mappings_are_one_memory, {"file": b"bytes"}),
)


def _prove_that_luck_decides(directory: Path) -> None:
    """With a seed: what was synced is there, and of the rest sometimes all, part, or nothing."""
    fates: Counter[str] = Counter()
    for seed in range(SEEDS):
        machine = Machine(directory / f"seed-{seed}")
        try:
            machine.start(writes_back=False)
            _all_is_synced(machine.root)
            _write(machine.root / "b", b"b" * 8192, is_synced=False)
            machine.cut(seed)
            machine.start()
            found = _list(machine.root)
        finally:
            machine.destroy()
        assert found["a/file"] == b"bytes", f"seed {seed} lost what was synced"
        content = found.get("b")
        fates["no name" if content is None else f"{(content or b'').count(b'b') / 8192:.0%}"] += 1
    assert {"no name", "0%", "100%"} < fates.keys(), f"not by chance: {fates}"


def _list(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }
