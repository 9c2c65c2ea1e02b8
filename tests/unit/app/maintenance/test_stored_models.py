"""What maintenance knows of base models in the store: damage, orphans, backups and copies."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from app.core.base_models import RECORD_NAME, Catalogue, load_catalogue
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
def machines(tmp_path: Path) -> list[Catalogue]:
    """Two machines that have installed the same base model, `shared`."""
    source = write_files(tmp_path / "source", tiny_model_files())
    entry = catalogue_entry("shared", source={"kind": "directory", "path": str(source)})
    data_dirs = [tmp_path / "alpha", tmp_path / "beta"]
    for data_dir in data_dirs:
        install_models(data_dir, entry)
    return [load_catalogue(data_dir) for data_dir in data_dirs]


@pytest.fixture
def copy(machines: list[Catalogue], database: Database, store: LocalBlobStore) -> StoredCopy:
    """A base model that another machine has stored."""
    _keep(machines[0], database, store)
    add_file(database, store)
    return _find(database)


def _keep(machine: Catalogue, database: Database, store: LocalBlobStore) -> None:
    installed = machine.find_installed("shared")
    assert installed is not None
    keep_in_store(installed, machine.directory("shared"), database, store, now=NOW)


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


@pytest.mark.usefixtures("copy")
def test_a_second_installation_stores_nothing(
    machines: list[Catalogue], database: Database, store: LocalBlobStore
) -> None:
    before = {blob.key for blob in store.list_all()}

    for machine in machines:
        _keep(machine, database, store)

    assert {blob.key for blob in store.list_all()} == before


def test_of_two_machines_that_store_at_once_one_does_and_both_succeed(
    machines: list[Catalogue],
    database: Database,
    store: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, meet = store.put, threading.Barrier(2)

    def put_together(key: str, path: Path) -> None:
        put(key, path)
        if key.endswith(RECORD_NAME):  # the last file
            meet.wait(30)

    def insert_together(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO stored_models"):
            with suppress(threading.BrokenBarrierError):
                meet.wait(0.5)  # the other one comes only if nothing makes it wait

    monkeypatch.setattr(store, "put", put_together)
    event.listen(database.engine, "before_cursor_execute", insert_together)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda machine: _keep(machine, database, store), machines))

    kept = {file.key for file in _find(database).files.values()}
    assert {blob.key for blob in store.list_all()} == kept


def test_files_stay_while_nobody_knows_whether_their_row_was_committed(
    machines: list[Catalogue],
    database: Database,
    store: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = database.backend.commit

    def lose_answer(session: Session) -> None:
        commit(session)
        raise OutcomeUnknownError("The connection was lost.")

    monkeypatch.setattr(database.backend, "commit", lose_answer)

    with pytest.raises(OutcomeUnknownError):
        _keep(machines[0], database, store)

    assert {blob.key for blob in store.list_all()} == {
        f.key for f in _find(database).files.values()
    }


def test_no_copy_is_recorded_in_a_store_that_the_service_has_left(
    machines: list[Catalogue], database: Database, store: LocalBlobStore
) -> None:
    fence(database, "store-of-old-settings")

    with pytest.raises(StoreMovedError):
        _keep(machines[0], database, store)

    assert database.read(lambda session: StoredModels(session).find("shared")) is None
    assert list(store.list_all()) == []
