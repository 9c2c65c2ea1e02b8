import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.inspection import NoDatabaseError
from app.core.db.repositories.files import ExpiredFiles, FileRepository
from app.core.db.session import Database, Session
from app.core.db.snapshot import open_snapshot
from app.core.db.tables import File
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance.backup import make_backup
from app.maintenance.backup_format import BackupError, iterate_blobs, read_record, verify
from tests.builders import TEXT_LINE, add_file, add_job
from tests.unit.app.maintenance.conftest import AddCheckpoint, AddState

OpenSnapshot = Callable[[Database], AbstractContextManager[Session]]


@pytest.fixture
def file(
    *,
    database: Database,
    store: LocalBlobStore,
    now: datetime,
    add_checkpoint: AddCheckpoint,
    add_state: AddState,
) -> File:
    """One of the files of a service that has five more blobs."""
    job = add_job(database, created_at=now, status=JobStatus.PAUSED)
    add_checkpoint(job, 5)
    add_state(job, 8)
    add_file(database, store, created_at=now)
    return add_file(database, store, created_at=now)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "monday"


def count_rows(database_file: Path, table: str) -> int:
    with closing(sqlite3.connect(f"file:{database_file}?mode=ro&immutable=1", uri=True)) as rows:
        return rows.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608


def test_a_backup_has_every_row_and_every_blob(
    settings: Settings, file: File, target: Path
) -> None:
    record = make_backup(settings, target)

    assert verify(target) == set()
    assert record == read_record(target)
    assert (record.blob_count, record.missing) == (6, [])
    assert record.blob_bytes == sum(blob.bytes for blob in iterate_blobs(target))
    assert (target / "blobs" / file.blob_key).read_bytes() == TEXT_LINE
    assert (target / "base_models.toml").exists()
    assert sorted(record.files.keys() - {"tunery.db", "database.dump"}) == [
        "base_models.toml",
        "blobs.jsonl",
        "models/hub-tiny/tunery.json",
        "models/tiny/tunery.json",
    ]


def test_only_its_owner_can_read_a_backup(settings: Settings, file: File, target: Path) -> None:
    make_backup(settings, target)

    assert target.stat().st_mode & 0o077 == 0


@pytest.mark.only_sqlite
def test_the_newest_rows_are_in_it_though_they_are_in_the_log_beside_the_database(
    settings: Settings, database: Database, now: datetime, target: Path
) -> None:
    with database.reading() as reader:  # so that nothing moves from the log into the file
        ExpiredFiles(reader).list_all(now=now, limit=1)
        add_job(database)
        make_backup(settings, target)

    assert count_rows(target / "tunery.db", "jobs") == 1


def test_blobs_are_linked_where_they_can_be(settings: Settings, file: File, target: Path) -> None:
    make_backup(settings, target)

    assert (target / "blobs" / file.blob_key).stat().st_ino == (
        settings.blobs_dir / file.blob_key
    ).stat().st_ino


def test_blobs_are_copied_when_that_is_wanted_or_nothing_else_goes(
    settings: Settings, file: File, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cross_device(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    make_backup(settings, target, may_link=False)
    monkeypatch.setattr(os, "link", cross_device)
    make_backup(settings, target.with_name("tuesday"))

    for directory in (target, target.with_name("tuesday")):
        copy = directory / "blobs" / file.blob_key
        assert copy.read_bytes() == TEXT_LINE
        assert copy.stat().st_nlink == 1


def test_a_backup_outlives_what_is_deleted_afterwards(
    *,
    settings: Settings,
    file: File,
    target: Path,
    database: Database,
    store: LocalBlobStore,
) -> None:
    make_backup(settings, target)
    with database.writing() as session:
        FileRepository(session, DEFAULT_PROJECT_ID).delete(file)
    store.delete(file.blob_key)

    assert verify(target) == set()


def test_it_has_its_name_only_once_it_is_whole(
    settings: Settings, file: File, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    fsync = os.fsync

    def fail_for_directories(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir() and path.is_relative_to(target.parent):
            seen.append(target.exists())
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_directories)

    with pytest.raises(OSError, match="No space"):
        make_backup(settings, target)

    assert seen == [False]
    assert list(target.parent.iterdir()) == []


def test_a_directory_that_exists_is_not_touched(
    settings: Settings, file: File, target: Path
) -> None:
    target.mkdir(parents=True)

    with pytest.raises(BackupError, match="exists already"):
        make_backup(settings, target)

    assert list(target.iterdir()) == []


def test_a_backup_among_the_blobs_is_refused(settings: Settings, file: File) -> None:
    with pytest.raises(BackupError, match="among the service's own files"):
        make_backup(settings, settings.blobs_dir / "backup")


def test_without_a_database_there_is_nothing_to_back_up_and_none_is_made(
    settings: Settings, target: Path
) -> None:
    with pytest.raises(NoDatabaseError):
        make_backup(settings, target)

    assert not (settings.data_dir / "tunery.db").exists()
    assert not target.exists()


@pytest.fixture
def deleting_snapshots(
    database: Database, store: LocalBlobStore
) -> Callable[[File, int], OpenSnapshot]:
    """Deletes a file, and adds another, as soon as a snapshot is open; so many times."""

    def arrange(file: File, times: int) -> OpenSnapshot:
        files = [file]

        @contextmanager
        def delete_in_it(database: Database) -> Iterator[Session]:
            if len(files) <= times:
                files.append(add_file(database, store))
            with open_snapshot(database) as snapshot:
                if len(files) <= times + 1:
                    with database.writing() as session:
                        FileRepository(session, DEFAULT_PROJECT_ID).delete(files[-1])
                    store.delete(files[-1].blob_key)
                    if len(files) == times + 1:
                        files.append(file)
                yield snapshot

        return delete_in_it

    return arrange


@pytest.mark.parametrize("times", [1, 2, 8])
def test_what_is_deleted_between_rows_and_blobs_is_in_neither(
    times: int,
    *,
    settings: Settings,
    file: File,
    target: Path,
    deleting_snapshots: Callable[[File, int], OpenSnapshot],
) -> None:
    record = make_backup(settings, target, open_snapshot=deleting_snapshots(file, times))

    assert (record.missing, record.blob_count) == ([], 6)
    assert verify(target) == set()


def test_a_backup_that_never_catches_up_is_given_up(
    *,
    settings: Settings,
    file: File,
    target: Path,
    deleting_snapshots: Callable[[File, int], OpenSnapshot],
) -> None:
    snapshots = deleting_snapshots(file, 1000)

    with pytest.raises(BackupError, match="deleted faster"):
        make_backup(settings, target, open_snapshot=snapshots, tries=3)

    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"x"], ids=["gone", "cut"])
def test_what_the_service_has_lost_does_not_prevent_a_backup_and_is_named(
    content: bytes | None, *, settings: Settings, file: File, target: Path
) -> None:
    blob = settings.blobs_dir / file.blob_key
    blob.unlink()
    if content is not None:
        blob.write_bytes(content)

    record = make_backup(settings, target)

    assert (record.missing, record.blob_count) == ([file.blob_key], 5)
    assert verify(target) == {file.blob_key}


@pytest.mark.parametrize("how", ["copied", "read-back"])
def test_rotten_bytes_are_noticed_when_they_are_read(
    how: str, *, settings: Settings, file: File, target: Path
) -> None:
    (settings.blobs_dir / file.blob_key).write_bytes(b"x" * file.bytes)

    if how == "copied":
        record = make_backup(settings, target, may_link=False)
        assert record.missing == [file.blob_key]
    else:
        with pytest.raises(BackupError, match="not the file that was written"):
            make_backup(settings, target, reads_back=True)
        assert not target.exists()


def install_weights(settings: Settings, content: bytes) -> None:
    directory = settings.data_dir / "models" / "tiny"
    (directory / "model.safetensors").write_bytes(b"weights")
    record = json.loads((directory / "tunery.json").read_text())
    record["files"] = {"model.safetensors": hashlib.sha256(content).hexdigest()}
    (directory / "tunery.json").write_text(json.dumps(record))


def test_weights_of_base_models_come_along_when_that_is_wanted(
    settings: Settings, file: File, target: Path
) -> None:
    install_weights(settings, b"weights")

    make_backup(settings, target, with_models=True)

    assert (target / "models/tiny/model.safetensors").read_bytes() == b"weights"
    assert verify(target) == set()


def test_weights_that_have_changed_are_not_backed_up(
    settings: Settings, file: File, target: Path
) -> None:
    install_weights(settings, b"other weights")

    with pytest.raises(BackupError, match="not the file that was installed"):
        make_backup(settings, target, with_models=True)


def test_everything_is_on_the_disk_before_it_has_its_name(
    settings: Settings, file: File, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def noted_rename(path: Path, to: Path) -> Path:
        done.append("rename")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    make_backup(settings, target, may_link=False)

    before = done[: done.index("rename")]
    partial = next(Path(path) for path in before if path.endswith(".partial"))
    synced = {str(Path(path).relative_to(partial)) for path in before if str(partial) in path}
    written = {str(path.relative_to(target)) for path in target.rglob("*")} | {"."}
    assert written - synced == set()
    assert done[-1] == str(target.parent)


@pytest.mark.parametrize("name", ["database", "blobs.jsonl", "base_models.toml", "blob"])
def test_a_changed_backup_is_known_to_be(
    name: str, *, settings: Settings, file: File, target: Path
) -> None:
    record = make_backup(settings, target, may_link=False)
    names = {"database": record.database_name, "blob": f"blobs/{file.blob_key}"}
    path = target / names.get(name, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(BackupError, match="not the file that was written"):
        verify(target)


def test_what_is_no_backup_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"no backup\.json"):
        verify(tmp_path)


def test_a_backup_whose_record_is_cut_cannot_be_read(
    settings: Settings, file: File, target: Path
) -> None:
    make_backup(settings, target)
    record = target / "backup.json"
    record.write_bytes(record.read_bytes()[:-10])

    with pytest.raises(BackupError, match="cannot be read"):
        verify(target)


def test_a_record_that_leads_out_of_the_backup_is_refused(
    settings: Settings, file: File, target: Path
) -> None:
    make_backup(settings, target)
    record = json.loads((target / "backup.json").read_text())
    record["files"]["../../secret"] = {"bytes": 0, "sha256": ""}
    (target / "backup.json").write_text(json.dumps(record))

    with pytest.raises(BackupError, match="leads out"):
        verify(target)


def test_a_copy_of_a_backup_is_a_backup(
    settings: Settings, file: File, target: Path, tmp_path: Path
) -> None:
    make_backup(settings, target)
    shutil.copytree(target, tmp_path / "elsewhere")

    assert verify(tmp_path / "elsewhere") == set()
