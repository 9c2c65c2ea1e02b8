from pathlib import Path

import psutil
import pytest

from app.core.machine.memory import Memory, measure_memory
from worker.training.compute.hardware import anonymous_memory


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
        f"{group}/memory.stat": "anon 500000\ninactive_file 50000\n",
    }

    expected = Memory(total=1_000_000, free=450_000)
    assert measure_memory(root=write(tmp_path, files)) == expected


def test_the_older_groups_are_known_too(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/docker/1"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n",
        f"{group}/memory.limit_in_bytes": "1000000\n",
        f"{group}/memory.usage_in_bytes": "1200000\n",
        f"{group}/memory.stat": "inactive_file 1\ntotal_inactive_file 300000\n",
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
    block = bytearray(b"x" * 50_000_000)

    assert anonymous_memory() - before == pytest.approx(len(block), rel=0.2)
