"""A part of what `make chaos` does at length: see `tests.chaos.run`."""

from pathlib import Path

import pytest

from benchmarks.support.databases import new_database
from benchmarks.support.postgres import PostgresServer
from tests.chaos.run import attack
from tests.effort import effort

BLOWS = {
    "kill": effort(15, long=100),
    "freeze": effort(12, long=50),
    "terminate": effort(6, long=30),
}
"""A number and no time, as a busy machine may strike nobody in a few seconds."""

SLACK_S = 60.0
"""More than `make chaos` allows: a machine that tests may be busy with other things."""

ROUNDS = 8


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tunery.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def postgres_url(postgres: PostgresServer):
    with postgres.database(migrated=False) as url:
        yield url


def strike(how: str, url: str, data_dir: Path, *, seed: int = 7, mutation: str = "") -> list[str]:
    return attack(
        how,
        blows=BLOWS[how],
        url=url,
        data_dir=data_dir,
        seed=seed,
        slack_s=SLACK_S,
        mutation=mutation,
    )


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_nothing_is_lost(how: str, url: str, tmp_path: Path) -> None:
    assert strike(how, url, tmp_path) == []


def test_workers_that_are_told_to_stop_charge_nobody(tmp_path: Path) -> None:
    with new_database("sqlite", tmp_path) as url:
        wrong = strike("terminate", url, tmp_path)
    assert wrong == []


def test_without_the_fence_the_harness_finds_something(tmp_path: Path) -> None:
    """Else it would prove nothing. It is a matter of chance, so it has more than one."""

    def find(seed: int) -> list[str]:
        data_dir = tmp_path / str(seed)
        data_dir.mkdir()
        with new_database("sqlite", data_dir) as url:
            return strike("freeze", url, data_dir, seed=seed, mutation="no-fence")

    assert any(find(seed) for seed in range(ROUNDS))
