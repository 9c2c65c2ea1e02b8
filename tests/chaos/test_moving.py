"""A part of what `make chaos` does at length: see `tests.chaos.moving`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.moving import move_there_and_back
from tests.effort import effort
from tests.stores.servers import StoreServer

KILLS = effort(4, long=40)


@pytest.mark.long
@pytest.mark.timeout(2900)
def test_a_service_moves_to_s3_and_back_without_losing_a_byte(
    tmp_path: Path, own_server: Callable[[str], StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_server("localbucket")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)

    report = move_there_and_back(
        kills=KILLS, url=f"sqlite:///{tmp_path}/tunery.db", data_dir=tmp_path / "data", seed=7
    )

    assert report["problems"] == []
    assert report["kills of the copy"] == KILLS
