"""A worker whose installation has moved to a store that it does not know."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.db.installation.places import WrongStoreError
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError
from app.core.installation import StoreConnection, connect_store
from app.core.settings import Settings
from app.maintenance.store.moving import prepare_copy
from worker.membership.move_watch import MoveWatch

pytestmark = pytest.mark.only_sqlite


@pytest.fixture
def stops() -> Iterator[list[int]]:
    """The signals that this process gets to stop."""
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


def test_it_stops_the_process_once_and_its_end_names_the_settings(
    settings: Settings, database: Database, tmp_path: Path, stops: list[int]
) -> None:
    old = connect_store(settings, database, may_move=True)
    watch = MoveWatch(old)
    prepare_copy(settings, database, f"file://{tmp_path}/new")
    watch.look()
    watch.require_no_move()
    assert stops == []

    moved = {
        "store_url": f"file://{tmp_path}/new",
        "store_previous_url": f"file://{settings.blobs_dir}",
    }
    new = connect_store(settings.model_copy(update=moved), database, may_move=True)
    watch.look()
    watch.look()

    assert stops == [signal.SIGTERM]
    with pytest.raises(WrongStoreError, match="Set TUNERY_STORE_URL and TUNERY_STORE_PREVIOUS_URL"):
        watch.require_no_move()
    follower = MoveWatch(new)
    follower.look()
    follower.require_no_move()
    assert stops == [signal.SIGTERM]


def test_a_database_that_is_busy_says_nothing(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, stops: list[int]
) -> None:
    def busy(_connection: StoreConnection) -> bool:
        raise DatabaseBusyError("The database is busy.")

    watch = MoveWatch(connect_store(settings, database, may_move=True))
    monkeypatch.setattr(StoreConnection, "is_moved", busy)
    watch.look()

    watch.require_no_move()
    assert stops == []
