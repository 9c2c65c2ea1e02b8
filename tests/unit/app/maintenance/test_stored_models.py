"""What maintenance knows of base models in the store: damage, orphans, backups and copies."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.base_models import load_catalogue
from app.core.db.blob_keys import iterate_model_objects, iterate_named
from app.core.db.installation.fence import fence
from app.core.db.repositories.base_models.stored import StoredCopy, StoredModels
from app.core.db.session import Database, Session
from app.core.db.snapshot import release_running
from app.core.errors import OutcomeUnknownError, StoreMovedError
from app.core.orphans import LONG_GRACE_S, free_orphans
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance.doctor import examine
from app.maintenance.findings import Finding, Level
from benchmarks.support.samples import catalogue_entry
from tests.builders import NOW, add_file
from tests.models import install_models, tiny_model_files, write_files
from worker.model_store.shared import keep_in_store


@pytest.fixture
def copy(tmp_path: Path, database: Database, store: LocalBlobStore) -> StoredCopy:
    """A base model that another machine has stored."""
    source = write_files(tmp_path / "source", tiny_model_files())
    data_dir = tmp_path / "other-machine"
    install_models(
        data_dir, catalogue_entry("shared", source={"kind": "directory", "path": str(source)})
    )
    catalogue = load_catalogue(data_dir)
    installed = catalogue.find_installed("shared")
    assert installed is not None
    keep_in_store(installed, catalogue.directory("shared"), database, store, now=NOW)
    add_file(database, store)
    return _find(database)


def _find(database: Database) -> StoredCopy:
    copy = database.read(lambda session: StoredModels(session).find("shared"))
    assert copy is not None
    return copy


def _look(settings: Settings, *, may_repair: bool = False) -> Finding:
    findings = examine(settings, is_deep=True, may_repair=may_repair)
    return next(finding for finding in findings if finding.check == "stored models")


def test_a_copy_has_every_file_and_the_record_last(
    copy: StoredCopy, database: Database, store: LocalBlobStore
) -> None:
    keys = [file.key for file in copy.files.values()]

    assert list(copy.files) == [*sorted(copy.installed.files), "tunery.json"]
    assert all(key.startswith(f"models/{copy.installed.sha256}/") for key in keys)
    assert {blob.key for blob in store.list_all()} >= set(keys)
    assert sorted(blob.key for blob in iterate_model_objects(database.reading)) == sorted(keys)
    assert not {blob.key for blob in iterate_named(database.reading)} & set(keys)  # for backups


def test_doctor_finds_a_changed_file_and_forgets_the_copy(
    copy: StoredCopy, settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    assert _look(settings).level is Level.OK
    weights = copy.files["model.safetensors"]
    scratch = store.scratch_file()
    scratch.write_bytes(b"x" * weights.bytes)
    store.put(weights.key, scratch)

    found = _look(settings)
    repaired = _look(settings, may_repair=True)

    assert found.level is Level.BAD
    assert f"{weights.key} (the base model shared) does not have the bytes" in found.message
    assert "shared" in (repaired.repaired or "")
    assert database.read(lambda session: StoredModels(session).find("shared")) is None


def test_files_are_orphans_only_without_their_row(
    copy: StoredCopy, settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    for file in copy.files.values():
        path = settings.blobs_dir / file.key
        os.utime(path, (path.stat().st_mtime - 2 * LONG_GRACE_S,) * 2)

    assert free_orphans(database, store, settings).blobs == 0
    with database.writing() as session:
        StoredModels(session).remove("shared")
    assert free_orphans(database, store, settings).blobs == len(copy.files)


@pytest.mark.usefixtures("copy")
def test_a_restored_database_names_no_files_that_no_backup_has(database: Database) -> None:
    with database.writing() as session:
        release_running(session, now=NOW)

    assert database.read(lambda session: StoredModels(session).find("shared")) is None


def test_a_second_installation_stores_nothing(
    copy: StoredCopy, tmp_path: Path, database: Database, store: LocalBlobStore
) -> None:
    before = {blob.key for blob in store.list_all()}
    catalogue = load_catalogue(tmp_path / "other-machine")

    keep_in_store(copy.installed, catalogue.directory("shared"), database, store, now=NOW)

    assert {blob.key for blob in store.list_all()} == before


def test_a_copy_whose_row_may_be_there_keeps_its_files(
    copy: StoredCopy,
    tmp_path: Path,
    database: Database,
    store: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with database.writing() as session:
        StoredModels(session).remove("shared")
    before, transact = {blob.key for blob in store.list_all()}, database.transact

    def lose_the_answer(act: Callable[[Session], object]) -> None:
        transact(act)
        raise OutcomeUnknownError("It may have been done.")

    monkeypatch.setattr(database, "transact", lose_the_answer)
    catalogue = load_catalogue(tmp_path / "other-machine")
    with pytest.raises(OutcomeUnknownError):
        keep_in_store(copy.installed, catalogue.directory("shared"), database, store, now=NOW)

    kept = {file.key for file in _find(database).files.values()}
    assert kept == {blob.key for blob in store.list_all()} - before


def test_no_copy_is_recorded_in_a_store_that_the_service_has_left(
    copy: StoredCopy, tmp_path: Path, database: Database, store: LocalBlobStore
) -> None:
    with database.writing() as session:
        StoredModels(session).remove("shared")
    before = {blob.key for blob in store.list_all()}
    fence(database, "store-of-old-settings")
    catalogue = load_catalogue(tmp_path / "other-machine")

    with pytest.raises(StoreMovedError):
        keep_in_store(copy.installed, catalogue.directory("shared"), database, store, now=NOW)

    assert database.read(lambda session: StoredModels(session).find("shared")) is None
    assert {blob.key for blob in store.list_all()} == before
