"""A part of what `make chaos-ray` does at length: see `tests.cluster.run`."""

from pathlib import Path

import pytest

from tests.cluster.model import attack as attack_model
from tests.cluster.ray_cluster import require_ray
from tests.cluster.run import attack
from tests.effort import effort
from tests.stores.fixtures import require_stores

BLOWS = effort(10, long=40)


@pytest.mark.timeout(3000)
def test_no_job_is_lost_whatever_of_a_cluster_is_killed(tmp_path: Path) -> None:
    require_ray()
    require_stores()

    assert attack(tmp_path, blows=BLOWS, seed=7) == []


@pytest.mark.timeout(1500)
def test_the_real_model_ends_the_same_when_its_node_is_killed(tmp_path: Path) -> None:
    require_ray()
    require_stores()

    assert attack_model(tmp_path, kills=1) == []
