"""Doctor, backup, restore and the search for orphans while the service moves between two stores."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.core.db.installation.places import WrongStoreError
from app.core.db.session import Database
from app.core.db.tables import File
from app.core.installation import connect_store, read_places
from app.core.orphans import GRACE_S, LONG_GRACE_S, free_orphans
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.maintenance.backup import make_backup
from app.maintenance.backup_format import BackupError
from app.maintenance.doctor import examine
from app.maintenance.findings import Finding, Level
from app.maintenance.restore import restore_backup
from app.maintenance.store.copy_blobs import BlobCopier, iterate_blobs
from app.maintenance.store.moving import (
    CannotCopyError,
    finish_move,
    prepare_copy,
    prepare_rest,
)
from tests.builders import add_file, add_part, add_succeeded_job, build_upload, put_blob
from tests.stores.bucket import keys_of
from tests.stores.servers import BUCKET, StoreServer

pytestmark = pytest.mark.only_sqlite

LATE_S = LONG_GRACE_S + 60
LOCAL = ""
WAYS = {"to S3": (LOCAL, "new"), "from S3": ("old", LOCAL), "within S3": ("old", "new")}


@dataclass(frozen=True)
class Moving:
    """A service between its two copies, with files in either store and in both."""

    old: Settings
    settings: Settings
    """With both stores."""
    database: Database
    present: BlobStore
    previous: BlobStore
    in_previous: File
    in_both: File
    in_present: File

    @property
    def bytes_by_key(self) -> dict[str, bytes]:
        """What rows name."""
        store = connect_store(self.settings, self.database, may_move=False).store
        found: dict[str, bytes] = {}
        for each in iterate_blobs(self.database):
            with store.open(each.key) as blob:
                found[each.key] = blob.read()
        return found

    def look(
        self, settings: Settings | None = None, *, is_deep: bool = True, may_repair: bool = False
    ) -> list[Finding]:
        return list(examine(settings or self.settings, is_deep=is_deep, may_repair=may_repair))


@pytest.fixture
def server(
    store_server: Callable[[str], StoreServer], monkeypatch: pytest.MonkeyPatch
) -> StoreServer:
    server = store_server("localbucket")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def bucket(server: StoreServer, store_prefix: str) -> str:
    """URL of a place of its own."""
    return f"s3://{BUCKET}/{store_prefix}"


@pytest.fixture(params=WAYS)
def moving(
    request: pytest.FixtureRequest, bucket: str, settings: Settings, database: Database
) -> Moving:
    source, target = (each and f"{bucket}/{each}" for each in WAYS[request.param])
    home = f"file://{settings.blobs_dir}"
    old = settings.model_copy(update={"store_url": source})
    moved = {"store_url": target, "store_previous_url": source or home}
    before = connect_store(old, database, may_move=True)
    in_both = add_file(database, before.store, b"in both")
    plan = prepare_copy(old, database, target or home)
    BlobCopier(database, plan.source, plan.target).copy_all(iterate_blobs(database), lambda _: None)
    add_part(database, before.store, build_upload(), b"part")
    in_previous = add_file(database, before.store, b"in the previous store")
    new = old.model_copy(update=moved)
    after = connect_store(new, database, may_move=True)
    assert after.previous is not None
    add_succeeded_job(database, after.store)
    in_present = add_file(database, after.store, b"in the present store")
    return Moving(
        old, new, database, after.present, after.previous, in_previous, in_both, in_present
    )


ABOUT_BLOBS = ("store", "files", "blobs", "upload parts", "saved states", "tokens", "orphans")


def bad(findings: list[Finding]) -> dict[str, str]:
    found = [each for each in findings if each.level is Level.BAD]
    return {each.check: each.message for each in found if each.check in ABOUT_BLOBS}


class TestDoctor:
    def test_a_service_that_moves_is_well(self, moving: Moving) -> None:
        found = moving.look()

        assert [each.message for each in found if each.check == "blobs"] == [
            "7 are there, with the right content"
        ]
        assert bad(found) == {}

    def test_a_blob_that_is_in_neither_store_is_missed(self, moving: Moving) -> None:
        moving.previous.delete(moving.in_both.blob_key)
        assert "blobs" not in bad(moving.look())

        for store in (moving.previous, moving.present):
            store.delete(moving.in_both.blob_key)
            store.delete(moving.in_previous.blob_key)

        message = bad(moving.look())["blobs"]
        assert message.startswith("2 of 7 are damaged")
        for file in (moving.in_both, moving.in_previous):
            assert f"{file.blob_key} ({file.id}) is missing" in message

    def test_what_is_read_first_is_what_is_checked(self, moving: Moving) -> None:
        moving.present.delete(moving.in_both.blob_key)
        put_blob(moving.present, moving.in_both.blob_key, b"half")

        for is_deep in (False, True):
            assert "has 4 bytes instead of 7" in bad(moving.look(is_deep=is_deep))["blobs"]

    def test_the_wrong_settings_repair_nothing(self, moving: Moving) -> None:
        """Else each row whose blob is only in the other store would lose its part or its state."""
        before = (keys_of(moving.present), keys_of(moving.previous), moving.bytes_by_key)
        alone = moving.settings.model_copy(update={"store_previous_url": ""})

        for settings in (moving.old, alone):
            found = moving.look(settings, may_repair=True)
            assert "set TUNERY_STORE_PREVIOUS_URL to" in bad(found)["files"].replace("Set", "set")
            assert not {"blobs", "upload parts", "orphans"} & {each.check for each in found}

        after = (keys_of(moving.present), keys_of(moving.previous), moving.bytes_by_key)
        assert after == before


class TestBackup:
    def test_it_has_every_blob_and_is_restored_into_one_store(
        self, moving: Moving, bucket: str, tmp_path: Path
    ) -> None:
        record = make_backup(moving.settings, tmp_path / "backup", reads_back=True)

        assert (record.blob_count, record.missing) == (7, [])
        for number, url in enumerate((LOCAL, f"{bucket}/restored")):
            place = {
                "data_dir": tmp_path / f"new-{number}",
                "store_url": url,
                "store_previous_url": "",
            }
            restored = moving.settings.model_copy(update=place)
            assert restore_backup(restored, tmp_path / "backup").damaged == set()
            database = Database(restored.resolved_database_url)
            store = connect_store(restored, database, may_move=True).store
            assert {key: _read(store, key) for key in keys_of(store)} == moving.bytes_by_key
            assert bad(moving.look(restored)) == {}
            places = read_places(database)
            assert (places.previous, places.target, places.moved_at) == (None, None, None)
            database.dispose()

    def test_it_refuses_the_wrong_settings_and_says_which(
        self, moving: Moving, tmp_path: Path
    ) -> None:
        alone = moving.settings.model_copy(update={"store_previous_url": ""})
        for settings in (moving.old, alone):
            with pytest.raises(WrongStoreError, match="et TUNERY_STORE_PREVIOUS_URL to"):
                make_backup(settings, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()

    def test_no_store_that_belongs_to_a_service_is_restored_into(
        self, moving: Moving, tmp_path: Path
    ) -> None:
        make_backup(moving.settings, tmp_path / "backup")
        before = moving.bytes_by_key

        def refused(why: str, **place: object) -> None:
            with pytest.raises(BackupError, match=why):
                restore_backup(
                    moving.settings.model_copy(update=place), tmp_path / "backup", replace=True
                )

        refused("Unset TUNERY_STORE_PREVIOUS_URL")
        refused("Unset TUNERY_STORE_PREVIOUS_URL", data_dir=tmp_path / "new", store_url=LOCAL)
        for url in filter(None, (moving.settings.store_url, moving.settings.store_previous_url)):
            for data_dir in (moving.settings.data_dir, tmp_path / "new"):
                place = {"data_dir": data_dir, "store_url": url, "store_previous_url": ""}
                refused("belongs to an installation", **place)
        assert moving.bytes_by_key == before


class TestOrphans:
    @pytest.fixture
    def age(self, moving: Moving, server: StoreServer) -> Callable[[BlobStore, str, float], None]:
        """Makes a blob old. Both kinds of store keep blobs as files."""

        def root_of(url: str) -> Path:
            path = url.removeprefix("s3://")
            return moving.old.blobs_dir if path == url else server.root / "data" / path

        def make_old(store: BlobStore, key: str, age_s: float) -> None:
            url = moving.settings.store_url
            if store is moving.previous:
                url = moving.settings.store_previous_url
            written_s = time.time() - age_s
            os.utime(root_of(url) / key, (written_s, written_s))

        return make_old

    def test_they_are_collected_in_both_stores_and_nothing_else_is(
        self, moving: Moving, age: Callable[[BlobStore, str, float], None]
    ) -> None:
        for store in (moving.present, moving.previous):
            for key in (f"files/of {store}".replace("/", "-"), "files/in-both"):
                put_blob(store, key, b"nobody's")
            for key in keys_of(store):
                age(store, key, LATE_S)
            put_blob(store, "files/young", b"1")
        before = moving.bytes_by_key
        store = connect_store(moving.settings, moving.database, may_move=False).store

        freed = free_orphans(moving.database, store, moving.settings, batch=2)

        assert freed.blobs >= 3
        assert moving.bytes_by_key == before
        assert set(keys_of(moving.present)) | set(keys_of(moving.previous)) == {
            *before,
            "files/young",
        }
        assert moving.in_both.blob_key in keys_of(moving.previous)

    def test_an_upload_to_the_bucket_counts_from_its_beginning_also_on_the_way_home(
        self, moving: Moving, age: Callable[[BlobStore, str, float], None]
    ) -> None:
        """A process with the old settings may have put it just now, and is about to name it."""
        put_blob(moving.previous, "files/large", b"put in parts")
        age(moving.previous, "files/large", GRACE_S + 60)
        store = connect_store(moving.settings, moving.database, may_move=False).store

        assert not free_orphans(moving.database, store, moving.settings)
        assert "files/large" in keys_of(moving.previous)


def test_after_the_move_the_present_store_has_all(moving: Moving) -> None:
    before = moving.bytes_by_key

    plan = prepare_rest(moving.settings, moving.database)
    copier = BlobCopier(moving.database, plan.source, plan.target, verifies=True)
    report = copier.copy_all(iterate_blobs(moving.database), lambda _: None)
    finish_move(moving.database, plan)
    for key in keys_of(moving.previous):
        moving.previous.delete(key)

    assert report.damaged == []
    assert moving.bytes_by_key == before
    alone = moving.settings.model_copy(update={"store_previous_url": ""})
    assert bad(moving.look(alone)) == {}


def test_no_store_is_inside_another(bucket: str, settings: Settings, database: Database) -> None:
    """Else the outer one would take the blobs of the inner one for orphans, and delete them."""
    old = settings.model_copy(update={"store_url": f"{bucket}/old"})
    connect_store(old, database, may_move=True)

    for url in (f"{bucket}/old/new", bucket):
        with pytest.raises(CannotCopyError, match="one inside the other"):
            prepare_copy(old, database, url)

    prepare_copy(old, database, f"{bucket}/older")


def _read(store: BlobStore, key: str) -> bytes:
    with store.open(key) as blob:
        return blob.read()
