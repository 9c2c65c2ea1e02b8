import hashlib
import json
import shutil
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect

from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.clock import utc_now
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.session import Database
from app.core.job.scores.report import REPORT, VARIANT
from app.core.job.status import JobStatus
from app.core.occupancy import OccupiedError, occupied
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.local import LocalBlobStore
from app.maintenance.backup import make_backup
from app.maintenance.backup_format import BackupError, read_record
from app.maintenance.doctor import examine
from app.maintenance.findings import Level
from app.maintenance.keys import create_key, revoke_key
from app.maintenance.restore import restore_backup
from tests.builders import (
    TEXT_LINE,
    add_file,
    add_job,
    add_part,
    add_succeeded_job,
    add_tokens,
    add_worker,
    build_upload,
    claim,
    claim_check,
    dump_tables,
    get_job,
    list_checkpoints,
    list_messages,
)
from tests.exports import add_finished_export, add_task, claim_task, read_task
from tests.unit.app.maintenance.conftest import AddCheckpoint, AddState

if TYPE_CHECKING:
    from benchmarks.support.postgres import PostgresServer

HOUR = timedelta(hours=1)


@pytest.fixture
def backup(
    *,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    now: datetime,
    add_checkpoint: AddCheckpoint,
    add_state: AddState,
    tmp_path: Path,
) -> Path:
    """A backup of a service with a file, an upload part, and a paused job with results."""
    job = add_job(database, created_at=now, status=JobStatus.PAUSED)
    add_checkpoint(job, 5)
    add_state(job, 8)
    add_file(database, store, created_at=now)
    add_part(database, store, build_upload(created_at=now, expires_at=now + HOUR))
    SigningKeys(settings.signing_dir).ensure()
    make_backup(settings, tmp_path / "backup", may_link=False)
    return tmp_path / "backup"


@pytest.fixture
def elsewhere(
    settings: Settings, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Settings]:
    """A new machine."""
    data_dir = tmp_path / "elsewhere"
    if not settings.database_url:
        yield settings.model_copy(update={"data_dir": data_dir})
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database(migrated=False) as url:
        yield settings.model_copy(update={"data_dir": data_dir, "database_url": url})


def problems_of(settings: Settings) -> list[str]:
    findings = examine(settings, is_deep=True, may_repair=False)
    return [one.message for one in findings if one.level is Level.BAD]


def test_a_database_that_was_used_is_left_alone(backup: Path, elsewhere: Settings) -> None:
    restore_backup(elsewhere, backup)
    shutil.rmtree(elsewhere.blobs_dir)
    other = Database(elsewhere.resolved_database_url)
    before = dump_tables(other)
    other.dispose()

    with pytest.raises(BackupError, match="--force"):
        restore_backup(elsewhere, backup)

    assert dump_tables(other) == before
    other.dispose()


def test_a_restored_service_is_the_one_that_was_backed_up(
    backup: Path, database: Database, elsewhere: Settings
) -> None:
    restored = restore_backup(elsewhere, backup)

    other = Database(elsewhere.resolved_database_url)
    assert dump_tables(other) == dump_tables(database)
    other.dispose()
    assert problems_of(elsewhere) == []
    assert (restored.damaged, restored.put_back, restored.replaced) == (set(), [], None)
    made = {path.name for path in elsewhere.data_dir.iterdir()}
    assert made - {"tunery.db"} == {"base_models.toml", "blobs", "signing"}


def test_a_key_that_was_revoked_after_the_backup_is_counted(
    settings: Settings, database: Database, elsewhere: Settings, tmp_path: Path
) -> None:
    now = utc_now()
    with database.writing() as session:
        keys = [
            create_key(session, "a", [Scope.READ], expires_at=expires_at, now=now).key_id
            for expires_at in (None, now + HOUR, now, None)
        ]
        revoke_key(session, keys[0], now=now)
    make_backup(settings, tmp_path / "backup", may_link=False)
    with database.writing() as session:
        revoke_key(session, keys[1], now=now)

    restored = restore_backup(elsewhere, tmp_path / "backup")

    assert restored.working_keys == 2


def test_what_was_done_after_the_backup_is_not_in_it(
    backup: Path, database: Database, store: LocalBlobStore, elsewhere: Settings
) -> None:
    before = dump_tables(database)
    add_file(database, store)

    restore_backup(elsewhere, backup)

    other = Database(elsewhere.resolved_database_url)
    assert dump_tables(other) == before
    other.dispose()


def test_a_job_that_ran_waits_for_a_worker_at_once_and_goes_on(
    *,
    settings: Settings,
    database: Database,
    now: datetime,
    add_state: AddState,
    elsewhere: Settings,
    tmp_path: Path,
) -> None:
    job = add_job(database, created_at=now)
    claim(database, now=now + HOUR)  # a lease with much time left
    add_state(job, 8)
    make_backup(settings, tmp_path / "backup")

    restored = restore_backup(elsewhere, tmp_path / "backup")

    other = Database(elsewhere.resolved_database_url)
    with other.reading() as session:
        assert SavedStateRepository(session, DEFAULT_PROJECT_ID).newest_step(job.id) == 8
    assert restored.put_back == [job.id]
    assert get_job(other, job.id).status is JobStatus.QUEUED
    assert "after step 8" in list_messages(other, job.id)[-1]
    other.dispose()
    assert get_job(database, job.id).status is JobStatus.RUNNING


def test_a_check_of_data_begins_again_at_once_and_tokens_are_restored(
    *,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    elsewhere: Settings,
    tmp_path: Path,
) -> None:
    file = add_file(database, store)
    checked = add_job(database)
    add_tokens(database, checked, store, "jobs/tokens")
    job = add_job(database, training_file_id=file.id, status=JobStatus.VALIDATING_FILES)
    claim_check(database)
    make_backup(settings, tmp_path / "backup")

    restore_backup(elsewhere, tmp_path / "backup")

    other = Database(elsewhere.resolved_database_url)
    assert claim_check(database) is None
    lease = claim_check(other)
    other.dispose()
    assert lease is not None
    assert (lease.job_id, lease.attempt) == (job.id, 2)
    with LocalBlobStore(elsewhere.blobs_dir).open("jobs/tokens") as tokens:
        assert tokens.read() == TEXT_LINE


def test_a_backup_has_no_exports_and_a_restored_service_goes_on_with_reports(
    *,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    elsewhere: Settings,
    tmp_path: Path,
) -> None:
    job = add_succeeded_job(database, store)
    (checkpoint,) = list_checkpoints(database, job.id)
    before = make_backup(settings, tmp_path / "before")
    task = add_finished_export(database, store, checkpoint, {"adapter.gguf": b"GGUF"})
    report = add_task(database, checkpoint, kind=REPORT, variant=VARIANT)
    claim_task(database)
    record = make_backup(settings, tmp_path / "backup", reads_back=True)

    restore_backup(elsewhere, tmp_path / "backup")

    assert record.blob_count == before.blob_count
    other = Database(elsewhere.resolved_database_url)
    assert read_task(other, task.id) is None
    restored = read_task(other, report.id)
    assert restored is not None
    assert (restored.status, restored.worker_id) == ("queued", None)
    other.dispose()
    assert read_task(database, task.id) is not None


@pytest.mark.parametrize("may_link", [False, True], ids=["copied", "linked"])
def test_a_backup_can_be_restored_again_and_again(
    *, may_link: bool, backup: Path, elsewhere: Settings
) -> None:
    restore_backup(elsewhere, backup, may_link=may_link)
    other = Database(elsewhere.resolved_database_url)
    add_file(other, LocalBlobStore(elsewhere.blobs_dir))
    other.dispose()

    restore_backup(elsewhere, backup, may_link=may_link, replace=True)

    assert problems_of(elsewhere) == []


@pytest.mark.only_sqlite
@pytest.mark.parametrize("what", ["database", "blobs"])
def test_a_data_directory_with_something_in_it_is_left_alone(
    what: str, *, backup: Path, elsewhere: Settings
) -> None:
    elsewhere.data_dir.mkdir()
    path = elsewhere.data_dir / {"database": "tunery.db", "blobs": "blobs/files/file-1"}[what]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")

    with pytest.raises(BackupError, match="--force"):
        restore_backup(elsewhere, backup)

    assert path.read_bytes() == b"precious"


def test_by_force_what_is_there_is_moved_aside_and_not_lost(
    backup: Path, settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    before = dump_tables(database)
    later = add_file(database, store)
    database.dispose()

    restored = restore_backup(settings, backup, replace=True)

    assert dump_tables(database) == before
    assert problems_of(settings) == []
    assert restored.replaced is not None
    assert (restored.replaced / "blobs" / later.blob_key).read_bytes() == TEXT_LINE
    if not settings.database_url:
        aside = Database(f"sqlite:///{restored.replaced / 'tunery.db'}")
        assert len(dump_tables(aside)["files"]) == len(before["files"]) + 1
        aside.dispose()


def test_by_force_a_backup_replaces_the_database_of_a_newer_version(
    backup: Path, settings: Settings, database: Database
) -> None:
    before = dump_tables(database)
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE newer (id VARCHAR PRIMARY KEY, project_id VARCHAR NOT NULL "
            "REFERENCES projects (id))"
        )
    database.dispose()

    restore_backup(settings, backup, replace=True)

    assert dump_tables(database) == before
    assert "newer" not in inspect(database.engine).get_table_names()


@pytest.mark.only_sqlite
def test_the_log_of_the_database_that_was_there_is_not_played_into_the_new_one(
    backup: Path, settings: Settings, database: Database
) -> None:
    """SQLite takes any `-wal` beside a database for its own."""
    before = dump_tables(database)
    add_job(database)  # in the log; the connection stays open, so it is not moved into the file
    assert (settings.data_dir / "tunery.db-wal").stat().st_size

    restored = restore_backup(settings, backup, replace=True)

    assert restored.replaced is not None
    assert (restored.replaced / "tunery.db-wal").exists()
    database.dispose()
    assert dump_tables(database) == before


def test_a_running_service_is_not_replaced(
    backup: Path, settings: Settings, database: Database
) -> None:
    before = dump_tables(database)

    with occupied(settings), pytest.raises(OccupiedError, match="in use"):
        restore_backup(settings, backup, replace=True)

    assert dump_tables(database) == before


def test_a_worker_on_another_machine_is_seen_by_its_heartbeat(
    backup: Path, settings: Settings, database: Database
) -> None:
    add_worker(database, now=utc_now())

    with pytest.raises(OccupiedError, match="1 workers"):
        restore_backup(settings, backup, replace=True)


@pytest.mark.parametrize("name", ["database", "blobs.jsonl", "backup.json", "blob"])
def test_a_damaged_backup_is_refused_before_anything_is_touched(
    name: str, *, backup: Path, elsewhere: Settings
) -> None:
    names = {
        "database": read_record(backup).database_name,
        "blob": str(next((backup / "blobs/files").iterdir())),
    }
    path = backup / names.get(name, name)
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(BackupError):
        restore_backup(elsewhere, backup, accept_damage=name != "blob")

    assert not elsewhere.data_dir.exists()


def test_damaged_blobs_can_be_left_out(backup: Path, elsewhere: Settings) -> None:
    blob = next((backup / "blobs/files").iterdir())
    blob.unlink()

    restored = restore_backup(elsewhere, backup, accept_damage=True)

    assert restored.damaged == {f"files/{blob.name}"}
    (problem,) = problems_of(elsewhere)
    assert f"files/{blob.name}" in problem


@pytest.mark.only_sqlite
def test_a_database_that_was_damaged_before_the_backup_is_refused(
    backup: Path, elsewhere: Settings
) -> None:
    """As when the disk rotted before; then the sha256 is that of the damaged file."""
    path = backup / "tunery.db"
    content = bytearray(path.read_bytes())
    for page in range(5, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = bytes(100)
    path.write_bytes(content)
    record = json.loads((backup / "backup.json").read_text())
    record["files"]["tunery.db"]["sha256"] = hashlib.sha256(content).hexdigest()
    (backup / "backup.json").write_text(json.dumps(record))

    with pytest.raises(BackupError, match="is damaged"):
        restore_backup(elsewhere, backup)

    assert not (elsewhere.data_dir / "tunery.db").exists()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [("revision", "9999", "does not know"), ("database", "other", "TUNERY_DATABASE_URL names a")],
)
def test_a_backup_that_does_not_fit_is_refused(
    field: str, value: str, why: str, *, backup: Path, elsewhere: Settings
) -> None:
    record = json.loads((backup / "backup.json").read_text())
    if value == "other":
        value = "sqlite" if record["database"] == "postgresql" else "postgresql"
    record[field] = value
    (backup / "backup.json").write_text(json.dumps(record))

    with pytest.raises(BackupError, match=why):
        restore_backup(elsewhere, backup)

    assert not elsewhere.data_dir.exists()


def test_base_models_without_weights_are_named(backup: Path, elsewhere: Settings) -> None:
    restored = restore_backup(elsewhere, backup)

    assert restored.models_to_install == ["hub-tiny", "tiny"]
    assert not (elsewhere.data_dir / "models").exists()


def test_base_models_with_weights_are_installed(
    *,
    settings: Settings,
    backup: Path,
    elsewhere: Settings,
    tmp_path: Path,
) -> None:
    directory = settings.data_dir / "models" / "tiny"
    (directory / "model.safetensors").write_bytes(b"weights")
    record = json.loads((directory / "tunery.json").read_text())
    record["files"] = {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    (directory / "tunery.json").write_text(json.dumps(record))
    make_backup(settings, tmp_path / "with-models", with_models=True)

    restored = restore_backup(elsewhere, tmp_path / "with-models")

    tiny = elsewhere.data_dir / "models" / "tiny"
    assert restored.models_to_install == ["hub-tiny"]
    assert (tiny / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((tiny / "tunery.json").read_text()) == record


@pytest.mark.only_sqlite
def test_a_database_beside_the_data_directory_is_restored_beside_it(
    backup: Path, elsewhere: Settings, tmp_path: Path
) -> None:
    settings = elsewhere.model_copy(
        update={"database_url": f"sqlite:///{tmp_path}/other-place/jobs.db"}
    )

    restore_backup(settings, backup)

    assert sorted(path.name for path in (tmp_path / "other-place").iterdir()) == ["jobs.db"]
    assert problems_of(settings) == []


def test_a_restore_that_was_broken_off_can_be_done_again(backup: Path, elsewhere: Settings) -> None:
    elsewhere.data_dir.mkdir()
    (elsewhere.data_dir / "blobs.restoring" / "files").mkdir(parents=True)
    (elsewhere.data_dir / "blobs.restoring" / "files" / "stray").write_bytes(b"x")
    for name in ("", "-wal") if not elsewhere.database_url else ():
        (elsewhere.data_dir / f"tunery.db.restoring{name}").write_bytes(b"half")

    restore_backup(elsewhere, backup)

    assert problems_of(elsewhere) == []
    assert not list(elsewhere.data_dir.rglob("*restoring*"))
    assert not list(elsewhere.data_dir.rglob("stray"))


def test_the_service_goes_on_signing_with_its_key(
    settings: Settings, elsewhere: Settings, backup: Path
) -> None:
    restore_backup(elsewhere, backup)

    keys = SigningKeys(elsewhere.signing_dir)
    assert keys.list_public() == SigningKeys(settings.signing_dir).list_public() != []
    assert stat.S_IMODE((elsewhere.signing_dir / "key.pem").stat().st_mode) == 0o600


def test_retired_public_keys_are_restored_and_a_newer_key_is_moved_aside(
    settings: Settings, elsewhere: Settings, tmp_path: Path, database: Database
) -> None:
    before = SigningKeys(settings.signing_dir)
    before.ensure()
    before.rotate()
    make_backup(settings, tmp_path / "rotated")
    newer = SigningKeys(elsewhere.signing_dir).ensure()

    restored = restore_backup(elsewhere, tmp_path / "rotated")

    assert SigningKeys(elsewhere.signing_dir).list_public() == before.list_public()
    assert restored.replaced is not None
    assert SigningKeys(restored.replaced / "signing").ensure() == newer
