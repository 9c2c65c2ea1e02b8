"""What processes with old and with new settings do while their installation moves."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.db.installation.places import PreviousState, WrongStoreError
from app.core.db.migrate import upgrade
from app.core.db.session import Database
from app.core.db.tables import File
from app.core.db.worker_tables import StoredModel
from app.core.errors import BlobNotFoundError, StoreMovedError
from app.core.installation import StoreConnection, connect_store, read_places
from app.core.settings import Settings
from app.maintenance.store.copy_blobs import BlobCopier, iterate_blobs
from app.maintenance.store.moving import (
    CannotCopyError,
    finish_move,
    measure_stores,
    prepare_copy,
    prepare_rest,
)
from tests.builders import add_file, build_file, put_blob


@pytest.fixture
def moved(settings: Settings, tmp_path: Path) -> Settings:
    """The settings of the service after its move."""
    return settings.model_copy(
        update={
            "store_url": f"file://{tmp_path}/new",
            "store_previous_url": f"file://{settings.blobs_dir}",
        }
    )


Connect = Callable[[Settings], StoreConnection]


@pytest.fixture
def connect(database: Database) -> Iterator[Connect]:
    """Start as a process of its own, which has its own pool of connections."""
    opened: list[Database] = []

    def start(settings: Settings) -> StoreConnection:
        opened.append(Database(database.engine.url.render_as_string(hide_password=False)))
        return connect_store(settings, opened[-1], may_move=True)

    yield start
    for each in opened:
        each.dispose()


def read(connection: StoreConnection, key: str) -> bytes:
    with connection.store.open(key) as blob:
        return blob.read()


def upload(connection: StoreConnection) -> File:
    """Store a file as a request does: its bytes, then its row."""
    file = build_file(b"new")
    put_blob(connection.store, file.blob_key, b"new")
    with connection.database.writing() as session:
        session.add(file)
    return file


def copy_rest(settings: Settings, database: Database) -> None:
    plan = prepare_rest(settings, database)
    BlobCopier(database, plan.source, plan.target).copy_all(iterate_blobs(database), lambda _: None)
    finish_move(database, plan)


def test_every_state_of_a_move_is_safe(
    settings: Settings, moved: Settings, database: Database, connect: Connect
) -> None:
    old = connect(settings)
    before = add_file(database, old.store, b"before")
    with pytest.raises(WrongStoreError, match="does not belong"):
        connect(moved)  # nobody has prepared the new store
    prepare_copy(settings, database, moved.store_url)
    with pytest.raises(WrongStoreError, match="no process of it has started"):
        prepare_rest(moved, database)

    new = connect(moved)  # which makes the switch
    during, by_old = upload(new), upload(old)

    assert [read(new, each.blob_key) for each in (before, during, by_old)] == [
        b"before",
        b"new",
        b"new",
    ]
    assert read(old, before.blob_key) == b"before"
    with pytest.raises(StoreMovedError):  # and not that it is lost
        read(old, during.blob_key)
    assert (old.is_moved(), new.is_moved()) == (True, False)
    with pytest.raises(WrongStoreError, match="set TUNERY_STORE_PREVIOUS_URL"):
        connect(settings)
    with pytest.raises(WrongStoreError, match="Set TUNERY_STORE_PREVIOUS_URL"):
        connect(moved.model_copy(update={"store_previous_url": ""}))
    status = measure_stores(moved, database)
    assert (status.named.blobs, status.only_in_previous.blobs, status.missing) == (3, 2, 0)
    assert status.needs_previous

    copy_rest(moved, database)

    with pytest.raises(StoreMovedError):
        upload(old)
    model = StoredModel(id="m", sha256="", record={}, files={}, architecture="", bytes=0)
    with pytest.raises(StoreMovedError), old.database.writing() as session:
        session.add(model)
    assert not measure_stores(moved, database).needs_previous
    alone = connect(moved.model_copy(update={"store_previous_url": ""}))
    assert {read(alone, each.blob_key) for each in (before, during, by_old)} == {b"before", b"new"}
    with pytest.raises(BlobNotFoundError):
        read(alone, "files/none")


def test_a_file_is_deleted_in_both_stores(
    settings: Settings, moved: Settings, database: Database, connect: Connect
) -> None:
    old = connect(settings)
    file = add_file(database, old.store, b"before")
    plan = prepare_copy(settings, database, moved.store_url)
    BlobCopier(database, plan.source, plan.target).copy(next(iterate_blobs(database)))
    new = connect(moved)
    assert len(list(new.store.list_all())) == 2

    new.store.delete(file.blob_key)

    assert list(new.store.list_all()) == []


def test_a_service_moves_back(
    settings: Settings, moved: Settings, database: Database, connect: Connect
) -> None:
    connect(settings)
    prepare_copy(settings, database, moved.store_url)
    file = upload(connect(moved))
    back = settings.model_copy(update={"store_previous_url": moved.store_url})

    home = connect(back)

    assert read(home, file.blob_key) == b"new"
    copy_rest(back, database)
    assert read(connect(settings), file.blob_key) == b"new"
    assert read_places(database).previous_state is PreviousState.COPIED


def test_a_copy_whose_service_has_moved_once_more_ends_nothing(
    settings: Settings, moved: Settings, database: Database, connect: Connect
) -> None:
    connect(settings)
    prepare_copy(settings, database, moved.store_url)
    connect(moved)
    plan = prepare_rest(moved, database)
    connect(settings.model_copy(update={"store_previous_url": moved.store_url}))

    with pytest.raises(CannotCopyError, match="moved once more"):
        finish_move(database, plan)


def make_foreign(directory: Path, settings: Settings, url: str) -> None:
    """Let another installation have its store there."""
    directory.mkdir()
    foreign = Database(f"sqlite:///{directory}/tunery.db")
    upgrade(foreign)
    other = settings.model_copy(update={"data_dir": directory, "store_url": url})
    connect_store(other, foreign, may_move=True)
    foreign.dispose()


def test_no_copy_goes_to_a_wrong_place(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    def refused(url: str, why: str) -> None:
        with pytest.raises(CannotCopyError, match=why):
            prepare_copy(settings, database, url)

    (tmp_path / "full").mkdir()
    (tmp_path / "full/holiday.jpg").write_bytes(b"not ours")
    make_foreign(tmp_path / "other", settings, f"file://{tmp_path}/foreign")

    refused(f"file://{tmp_path}/full", "is not empty and has no marker")
    refused(f"file://{tmp_path}/foreign", "belongs to another installation")
    refused(f"file://{settings.blobs_dir}", "is the store that the service uses")
    refused("ftp://somewhere", "names no store")
