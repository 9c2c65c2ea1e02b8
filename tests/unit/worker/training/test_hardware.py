from pathlib import Path

import psutil
import pytest

from app.core.machine.memory import Memory, measure_memory
from worker.training.compute.hardware import Speeds, anonymous_memory, read_or_measure


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("limited", ["a/b", "a", ""])
def test_the_limit_of_a_container_counts_whichever_level_sets_it(
    tmp_path: Path, limited: str
) -> None:
    group = f"sys/fs/cgroup/{limited}"
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        f"{group}/memory.max": "1000000\n",
        f"{group}/memory.current": "600000\n",
        f"{group}/memory.stat": "anon 500000\ninactive_file 20000\nactive_file 30000\n",
    }

    expected = Memory(total=1_000_000, free=450_000)
    assert measure_memory(root=write(tmp_path, files)) == expected


def test_the_older_groups_are_known_too(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/docker/1"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n",
        f"{group}/memory.limit_in_bytes": "1000000\n",
        f"{group}/memory.usage_in_bytes": "1200000\n",
        f"{group}/memory.stat": "inactive_file 1\ntotal_inactive_file 200000\n"
        "total_active_file 100000\n",
    }

    assert measure_memory(root=write(tmp_path, files)).free == 100_000


def test_a_container_that_is_full_has_nothing_left(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": "2000\n",
        "sys/fs/cgroup/memory.stat": "inactive_file 10\n",
    }

    assert measure_memory(root=write(tmp_path, files)).free == 0


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    free = psutil.virtual_memory().available

    assert measure_memory(root=tmp_path).free == pytest.approx(free, rel=0.2)
    assert measure_memory(root=tmp_path).total == psutil.virtual_memory().total


def test_what_a_process_allocates_is_its_own() -> None:
    before = anonymous_memory()
    block = b"x" * 50_000_000  # a copy of it would count as well until malloc gives it back

    assert anonymous_memory() - before == pytest.approx(len(block), rel=0.2)


GOOD = Speeds(float32=90.0, bfloat16=190.0)
LOADED = Speeds(float32=60.0, bfloat16=50.0)
IMPLAUSIBLE = Speeds(float32=0.4, bfloat16=190.0)


def read(cache: Path, *measured: Speeds, quiet: bool = True) -> list[Speeds]:
    """What as many jobs as there are measurements read, one after the other."""
    return [
        read_or_measure(cache, measure=lambda one=one: one, is_quiet=lambda: quiet)
        for one in measured
    ]


def test_speeds_are_measured_once_on_a_quiet_machine(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD, LOADED) == [GOOD, GOOD]


def test_speeds_measured_under_load_are_measured_again_and_the_best_kept(tmp_path: Path) -> None:
    first = read(tmp_path, LOADED, quiet=False)
    second = read(tmp_path, Speeds(float32=50.0, bfloat16=190.0), quiet=True)

    assert first == [LOADED]
    assert second == [Speeds(float32=60.0, bfloat16=190.0)]
    assert read(tmp_path, GOOD) == second


def test_implausible_speeds_are_measured_again(tmp_path: Path) -> None:
    assert read(tmp_path, IMPLAUSIBLE, GOOD, LOADED) == [IMPLAUSIBLE, GOOD, GOOD]


def test_a_machine_that_stays_implausible_is_believed_in_the_end(tmp_path: Path) -> None:
    read(tmp_path, *[IMPLAUSIBLE] * 5)

    assert read(tmp_path, GOOD) == [IMPLAUSIBLE]


@pytest.mark.parametrize(
    "stored",
    [
        '{"float32": 90.0, "bfloat16": 190.0}',
        '{"speeds": {"float32": -1, "bfloat16": 1}, "is_quiet": true, "measurements": 1}',
        '{"speeds": {"float32": 90, "bfloat16": 1e300}, "is_quiet": true, "measurements": 1}',
        "",
    ],
)
def test_damaged_speeds_are_measured_again(tmp_path: Path, stored: str) -> None:
    read(tmp_path, LOADED)
    (path,) = tmp_path.iterdir()
    path.write_text(stored)

    assert read(tmp_path, GOOD, LOADED) == [GOOD, GOOD]


def test_a_processor_is_measured(tmp_path: Path) -> None:
    speeds = read_or_measure(tmp_path)

    assert speeds.float32 > 0.1
    assert list(tmp_path.iterdir())
