"""A part of what `make chaos` does at length: see `tests.chaos.run`."""

from pathlib import Path

import pytest

from tests.chaos.run import attack, new_database
from tests.postgres import PostgresServer

LIMIT_S = 40.0
"""For the attack itself; the service then has to round up."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tunery.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def postgres_url(postgres: PostgresServer):
    with postgres.database(migrated=False) as url:
        yield url


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_nothing_is_lost(how: str, url: str, tmp_path: Path) -> None:
    assert attack(how, blows=10**6, url=url, data_dir=tmp_path, seed=7, limit_s=LIMIT_S) == []


def test_workers_that_are_told_to_stop_charge_nobody(tmp_path: Path) -> None:
    with new_database("sqlite", tmp_path) as url:
        wrong = attack("terminate", blows=10**6, url=url, data_dir=tmp_path, seed=7, limit_s=20.0)
    assert wrong == []


def test_without_the_fence_the_harness_finds_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would prove nothing."""
    monkeypatch.setenv("TUNERY_CHAOS_MUTATION", "no-fence")
    with new_database("sqlite", tmp_path) as url:
        wrong = attack("freeze", blows=10**6, url=url, data_dir=tmp_path, seed=7, limit_s=30.0)
    assert wrong
