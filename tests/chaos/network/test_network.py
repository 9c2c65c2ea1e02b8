"""A part of what `make chaos-network` does at length: see `tests.chaos.network.run`."""

from pathlib import Path

from tests.chaos.network.machines import require_namespaces
from tests.chaos.network.run import attack
from tests.effort import effort
from tests.stores.fixtures import require_stores

JOBS = effort(20, long=60)
KILLS = effort(12, long=36)
PARTITIONS = effort(4, long=12)


def test_nothing_is_lost_between_machines(tmp_path: Path) -> None:
    require_namespaces()
    require_stores()
    assert attack(tmp_path, jobs=JOBS, kills=KILLS, partitions=PARTITIONS, seed=7) == []
