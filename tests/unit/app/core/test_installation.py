"""Which blob store and which signing key a process may use."""

import threading
from pathlib import Path
from typing import Any

import pytest

from app.core.db.blob_keys import InstallationRepository
from app.core.db.session import Database
from app.core.installation import (
    WrongKeyError,
    WrongStoreError,
    require_right_key,
    require_right_store,
)
from app.core.signing.keys import SigningKeys
from app.core.storage.local import LocalBlobStore
from app.core.storage.marker import MARKER_KEY, read_marker, write_marker
from tests.builders import add_file, put_blob


def store_id(database: Database) -> str | None:
    return database.read(lambda session: InstallationRepository(session).read().store_id)


def test_the_first_start_makes_the_store_that_of_the_database(
    database: Database, store: LocalBlobStore
) -> None:
    add_file(database, store)  # an installation that an earlier version has begun

    require_right_store(database, store)
    first = store_id(database)
    require_right_store(database, store)

    assert first is not None
    assert read_marker(store) == store_id(database) == first


def test_first_starts_at_the_same_time_agree(database: Database, store: LocalBlobStore) -> None:
    failures: list[BaseException] = []
    begin = threading.Barrier(6)

    def start() -> None:
        begin.wait()
        try:
            require_right_store(database, store)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert read_marker(store) == store_id(database) is not None


class DyingStore(LocalBlobStore):
    """Its process is killed before it has put anything."""

    def put(self, key: str, scratch: Path) -> None:
        raise KeyboardInterrupt


def test_a_first_start_that_was_killed_is_repeated(
    database: Database, store: LocalBlobStore, data_dir: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        require_right_store(database, DyingStore(data_dir / "blobs"))
    begun = store_id(database)

    require_right_store(database, store)

    assert begun is not None
    assert read_marker(store) == store_id(database) == begun


@pytest.mark.parametrize("what", ["empty", "of_another", "emptied"])
def test_another_store_is_refused(
    database: Database, store: LocalBlobStore, tmp_path: Path, what: str
) -> None:
    require_right_store(database, store)
    other = LocalBlobStore(tmp_path / "other")
    if what == "of_another":
        write_marker(other, "store-of-somebody-else")
    if what == "emptied":
        other = store
        store.delete(MARKER_KEY)
    before = read_marker(other)

    with pytest.raises(WrongStoreError, match="TUNERY_STORE_URL") as refused:
        require_right_store(database, other)

    assert str(tmp_path) in str(refused.value)
    assert read_marker(other) == before


def test_a_database_without_a_store_takes_none_of_another(
    database: Database, store: LocalBlobStore
) -> None:
    """As when a restored copy is started with the settings of the original."""
    write_marker(store, "store-of-the-original")

    with pytest.raises(WrongStoreError, match="belongs to another database"):
        require_right_store(database, store)

    assert store_id(database) is None


def test_a_database_with_files_takes_no_empty_store(
    database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    add_file(database, store)
    empty = LocalBlobStore(tmp_path / "empty")

    with pytest.raises(WrongStoreError, match="It is empty, and the database has files"):
        require_right_store(database, empty)

    assert read_marker(empty) is None


def test_the_marker_is_no_blob(store: LocalBlobStore) -> None:
    write_marker(store, "store-1")
    put_blob(store, "files/file-1", b"bytes")

    assert [blob.key for blob in store.list_all()] == ["files/file-1"]
    assert list(store.list_scratch()) == []


def signing_key(database: Database) -> Any:
    return database.read(lambda session: InstallationRepository(session).read().signing_key)


def test_the_first_worker_makes_the_key_and_a_rotation_is_followed(
    database: Database, tmp_path: Path
) -> None:
    keys = SigningKeys(tmp_path / "signing")

    require_right_key(database, keys)
    assert signing_key(database) == keys.list_public()[0].id

    rotated = keys.rotate()
    require_right_key(database, keys)
    assert signing_key(database) == rotated.id


@pytest.mark.parametrize("has_own", [True, False])
def test_a_machine_with_another_key_is_refused(
    database: Database, tmp_path: Path, *, has_own: bool
) -> None:
    require_right_key(database, SigningKeys(tmp_path / "signing"))
    other = SigningKeys(tmp_path / "other")
    if has_own:
        other.ensure()

    with pytest.raises(WrongKeyError, match="'signing'"):
        require_right_key(database, other)

    assert len(other.list_public()) == has_own  # none is made that would be in the way
