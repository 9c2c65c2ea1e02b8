"""A service whose bytes are in a bucket of S3: what its operator sees."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.db.tables import File, Job
from app.core.installation import require_right_store
from app.core.orphans import free_orphans
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.local_copies import BlobRef, open_local
from app.core.storage.marker import write_marker
from app.core.storage.opening import open_store
from app.maintenance.backup import make_backup
from app.maintenance.backup_format import BackupError, verify
from app.maintenance.doctor import examine
from app.maintenance.findings import Finding, Level
from app.maintenance.restore import restore_backup
from app.services.projects import erase_project
from tests.builders import add_file, add_succeeded_job, list_checkpoints, put_blob
from tests.stores.bucket import LARGE, damage, keys_of, server, settings, store
from tests.stores.servers import SECRET, StoreServer

__all__ = ["server", "settings", "store"]

pytestmark = pytest.mark.only_sqlite


class TestOrphans:
    @pytest.fixture
    def file(self, database: Database, store: Any) -> File:
        return add_file(database, store)

    def make_old(self, server: StoreServer, settings: Settings, key: str, hours: float) -> None:
        path = server.root / "data" / settings.store_url.removeprefix("s3://") / key
        written_s = time.time() - 3600 * hours
        os.utime(path, (written_s, written_s))

    def test_only_old_blobs_without_a_row_are_deleted(
        self,
        *,
        database: Database,
        store: Any,
        settings: Settings,
        server: StoreServer,
        file: File,
    ) -> None:
        put_blob(store, "files/orphan", b"1")
        put_blob(store, "files/new", b"1")
        for key in ("files/orphan", file.blob_key):
            self.make_old(server, settings, key, hours=25)

        freed = free_orphans(database, store, settings, batch=1)

        assert freed.blobs == 1
        assert keys_of(store) == sorted([file.blob_key, "files/new"])

    @pytest.mark.parametrize("hours", [-3, 3, 20])
    def test_a_clock_that_is_wrong_loses_no_new_blob(
        self,
        *,
        database: Database,
        store: Any,
        settings: Settings,
        server: StoreServer,
        file: File,
        hours: float,
    ) -> None:
        """A large upload counts from its beginning on S3, which has the same effect."""
        put_blob(store, "files/new", b"1")
        self.make_old(server, settings, "files/new", hours)

        assert not free_orphans(database, store, settings)

        assert keys_of(store) == sorted([file.blob_key, "files/new"])


def test_an_erased_project_leaves_nothing_in_the_bucket(
    database: Database, store: Any, settings: Settings
) -> None:
    job = add_succeeded_job(database, store, steps=(1, 2))
    add_file(database, store)
    blob = BlobRef(*_one_blob(database, job))
    open_local(store, settings, blob, require_room=lambda _: None).close()

    erased = erase_project(
        DEFAULT_PROJECT_ID,
        read=database.read,
        write=database.transact,
        store=store,
        settings=settings,
        by=None,
        now=utc_now(),
    )

    assert (keys_of(store), erased.blobs_left) == ([], 0)
    assert erased.blobs > 2
    assert not settings.copies_dir.exists()


def _one_blob(database: Database, job: Job) -> tuple[str, str]:
    (first, *_) = list_checkpoints(database, job.id)
    return first.files[0].blob_key, first.files[0].sha256


class TestMaintenance:
    @pytest.fixture
    def file(self, database: Database, store: Any) -> File:
        add_succeeded_job(database, store, steps=(1,))
        return add_file(database, store, LARGE)

    @pytest.mark.parametrize("to", ["bucket", "disk"])
    def test_a_backup_is_whole_and_can_be_restored_anywhere(
        self, store: BlobStore, settings: Settings, file: File, tmp_path: Path, to: str
    ) -> None:
        make_backup(settings, tmp_path / "backup")
        url = f"{settings.store_url}-restored" if to == "bucket" else ""
        changes = {"data_dir": tmp_path / "elsewhere", "store_url": url}
        elsewhere = settings.model_copy(update=changes)

        restored = restore_backup(elsewhere, tmp_path / "backup")

        assert verify(tmp_path / "backup") == restored.damaged == set()
        assert keys_of(open_store(elsewhere)) == keys_of(store)
        with open_store(elsewhere).open(file.blob_key) as source:
            assert source.read() == LARGE
        assert not any(f.level is Level.BAD for f in blob_findings(elsewhere))
        require_right_store(Database(elsewhere.resolved_database_url), open_store(elsewhere))

    def test_a_restore_leaves_other_files_of_a_bucket_alone(
        self, settings: Settings, file: File, tmp_path: Path
    ) -> None:
        make_backup(settings, tmp_path / "backup")
        changes = {"data_dir": tmp_path / "elsewhere", "store_url": f"{settings.store_url}-2"}
        elsewhere = settings.model_copy(update=changes)
        put_blob(open_store(elsewhere), file.blob_key, LARGE)  # a restore that was interrupted
        put_blob(open_store(elsewhere), "files/other", b"1")

        with pytest.raises(BackupError, match="not in the backup, such as files/other"):
            restore_backup(elsewhere, tmp_path / "backup", replace=True)

        open_store(elsewhere).delete("files/other")
        assert restore_backup(elsewhere, tmp_path / "backup").damaged == set()

    def test_a_restore_leaves_the_bucket_of_another_installation_alone(
        self, settings: Settings, file: File, tmp_path: Path
    ) -> None:
        make_backup(settings, tmp_path / "backup")
        changes = {"data_dir": tmp_path / "elsewhere", "store_url": f"{settings.store_url}-3"}
        elsewhere = settings.model_copy(update=changes)
        write_marker(open_store(elsewhere), "store-1")

        with pytest.raises(BackupError, match="belongs to an installation"):
            restore_backup(elsewhere, tmp_path / "backup", replace=True)

    def test_a_backup_says_what_is_damaged(
        self, settings: Settings, file: File, tmp_path: Path, server: StoreServer
    ) -> None:
        damage(server, settings, file.blob_key)

        record = make_backup(settings, tmp_path / "backup")

        assert record.missing == [file.blob_key]

    def test_the_doctor_finds_what_is_lost_and_with_deep_what_is_damaged(
        self, *, store: BlobStore, settings: Settings, file: File, server: StoreServer
    ) -> None:
        damage(server, settings, file.blob_key)

        quick = blob_findings(settings)
        deep = blob_findings(settings, is_deep=True)
        store.delete(file.blob_key)
        lost = blob_findings(settings)

        assert quick[0].level is Level.OK
        assert "does not have the bytes that were written" in deep[0].message
        assert f"{file.blob_key} ({file.id}) is missing" in lost[0].message

    def test_the_doctor_says_what_the_store_does(self, settings: Settings, file: File) -> None:
        (found,) = (each for each in examine_all(settings) if each.check == "store")

        assert found.level is Level.OK
        assert found.message.startswith(f"{settings.store_url} answers, and honours If-None-Match")

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Is it running"),
            ("TUNERY", "s3://no-such-bucket/x", "bucket"),
        ],
    )
    def test_the_doctor_says_why_a_store_cannot_be_used(
        self,
        *,
        settings: Settings,
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
        value: str,
        said: str,
    ) -> None:
        monkeypatch.setattr("app.core.storage.s3.store.PATIENCE_S", 0.5)
        monkeypatch.setattr("app.core.storage.s3.calls.PATIENCE_S", 0.5)
        if variable == "TUNERY":
            settings = settings.model_copy(update={"store_url": value})
        else:
            monkeypatch.setenv(variable, value)

        found = next(each for each in examine_all(settings) if each.check == "store")

        assert found.level is Level.BAD
        assert said in found.message
        assert SECRET not in found.message


def test_the_doctor_says_that_the_keys_are_wrong(
    *,
    settings: Settings,
    database: Database,
    own_server: Callable[[str], StoreServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in own_server("rclone").environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")

    found = next(each for each in examine_all(settings) if each.check == "store")

    assert found.level is Level.BAD
    assert "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in found.message
    assert "another-secret" not in found.message


def examine_all(settings: Settings, *, is_deep: bool = False) -> list[Finding]:
    return list(examine(settings, is_deep=is_deep, may_repair=False))


def blob_findings(settings: Settings, *, is_deep: bool = False) -> list[Finding]:
    found = examine_all(settings, is_deep=is_deep)
    return [each for each in found if each.check in {"blobs", "upload parts", "saved states"}]
