"""Each check is shown a service in good order, and one in which just this is wrong."""

import json
import os
import shutil
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from io import BufferedReader
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import RECORD_NAME
from app.core.db import inspection
from app.core.db.check_tables import DataCheck
from app.core.db.migrate import newest_revision
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.session import Database
from app.core.db.sqlite import sqlite_driver
from app.core.db.tables import Checkpoint, UploadPart
from app.core.disk import Ballast
from app.core.job.status import JobStatus
from app.core.sampling.socket_path import socket_path
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.local import LocalBlobStore
from app.maintenance.check_blobs import check_blobs
from app.maintenance.check_disk import check_file_system, file_system_of
from app.maintenance.doctor import examine
from app.maintenance.findings import Finding, Level, Patient
from tests.builders import (
    add_file,
    add_job,
    add_part,
    add_tokens,
    add_worker,
    build_job_in,
    build_upload,
    claim,
    get_job,
    list_blobs,
    nested_directories,
    put_blob,
)
from tests.exports import add_finished_export, add_task, claim_task
from tests.unit.app.maintenance.conftest import MIB, AddCheckpoint, AddState, execute

HOUR = timedelta(hours=1)


def look(
    settings: Settings, *, is_deep: bool = False, may_repair: bool = False
) -> dict[str, Finding]:
    findings = list(examine(settings, is_deep=is_deep, may_repair=may_repair))
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


def not_ok(findings: dict[str, Finding]) -> dict[str, Level]:
    return {name: one.level for name, one in findings.items() if one.level is not Level.OK}


@pytest.fixture
def healthy(
    *,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    now: datetime,
    add_checkpoint: AddCheckpoint,
    add_state: AddState,
) -> Settings:
    """A service with a file, a part of another, and a job with a checkpoint and two states."""
    add_file(database, store, created_at=now)
    add_part(database, store, build_upload(created_at=now, expires_at=now + HOUR))
    job = add_job(database, created_at=now, status=JobStatus.PAUSED)
    add_tokens(database, job, store)
    add_checkpoint(job, 5)
    add_state(job, 4)
    add_state(job, 8)
    Ballast(settings).make_if_room()
    return settings


@pytest.mark.parametrize("is_deep", [False, True], ids=["", "deep"])
def test_a_service_in_good_order_has_nothing_wrong(healthy: Settings, *, is_deep: bool) -> None:
    findings = look(healthy, is_deep=is_deep)

    assert not_ok(findings) == {}
    assert list(findings) == [
        "space",
        "store",
        "ballast",
        "file system",
        "privacy",
        "base models",
        "database",
        "integrity",
        "schema",
        "sandbox",
        "sampler",
        "jobs",
        "stuck jobs",
        "tasks",
        "workers",
        "clock",
        "blobs",
        "upload parts",
        "saved states",
        "tokens",
        "exports",
        "manifests",
        "orphans",
    ]
    assert findings["blobs"].message.startswith("9 are there")
    assert findings["sandbox"].message.startswith("training processes are contained by dropped p")
    assert findings["manifests"].message.startswith("3 match")


def test_looking_changes_nothing(healthy: Settings, database: Database) -> None:
    def everything() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in healthy.data_dir.rglob("*")
            if path.is_file() and "tunery.db-" not in path.name
        }

    (healthy.blobs_dir / "files" / "stray").write_bytes(b"x")
    before = everything()

    look(healthy, is_deep=True)

    assert everything() == before


def test_where_there_is_no_database_nothing_is_examined_and_none_is_made(
    settings: Settings,
) -> None:
    with pytest.raises(inspection.NoDatabaseError, match=r"There is no database at .*tunery\.db"):
        look(settings)

    assert not (settings.data_dir / "tunery.db").exists()


def test_a_server_that_does_not_answer_is_said_not_to(settings: Settings) -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=1"

    with pytest.raises(inspection.NoDatabaseError, match="cannot be reached"):
        look(settings.model_copy(update={"database_url": url}))


@pytest.mark.only_sqlite
def test_an_old_sqlite_is_pointed_out(
    healthy: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.dispose()
    monkeypatch.setattr(sqlite_driver, "sqlite_version_info", (3, 40, 1))

    finding = look(healthy)["database"]

    assert finding.level is Level.WARN
    assert "3.40.1" in finding.message


@pytest.mark.only_sqlite
def test_a_damaged_database_is_found(healthy: Settings, database: Database) -> None:
    database.dispose()
    path = healthy.data_dir / "tunery.db"
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = bytes(100)
    path.write_bytes(content)

    findings = look(healthy)

    assert findings["integrity"].level is Level.BAD


@pytest.mark.only_sqlite
def test_a_file_that_is_no_database_is_found(healthy: Settings, database: Database) -> None:
    database.dispose()
    (healthy.data_dir / "tunery.db").write_bytes(b"not a database" * 1000)

    findings = look(healthy)

    assert findings["integrity"].level is Level.BAD
    assert "not a database" in findings["integrity"].message
    assert findings["space"].level is Level.OK


@pytest.mark.only_sqlite
def test_a_broken_reference_is_found(healthy: Settings) -> None:
    with closing(sqlite3.connect(healthy.data_dir / "tunery.db")) as foreign:
        foreign.execute("PRAGMA foreign_keys = OFF")
        foreign.execute("UPDATE checkpoints SET job_id = 'ftjob-gone'")
        foreign.commit()

    finding = look(healthy)["integrity"]

    assert finding.level is Level.BAD
    assert "checkpoints names no row of jobs" in finding.message


@pytest.mark.parametrize(
    ("revision", "level"),
    [pytest.param("0001", Level.WARN, id="older"), pytest.param("9999", Level.BAD, id="newer")],
)
def test_another_schema_is_found_and_its_rows_are_left_alone(
    revision: str, level: Level, *, healthy: Settings, database: Database
) -> None:
    change = "UPDATE alembic_version SET version_num = :revision"
    execute(database, change, revision=revision)
    try:
        findings = look(healthy, may_repair=True)
    finally:  # the database may be for the next test as well
        execute(database, change, revision=newest_revision())

    assert findings["schema"].level is level
    assert "blobs" not in findings


def test_jobs_whose_worker_is_gone_are_found_and_put_back(
    healthy: Settings, database: Database, now: datetime
) -> None:
    job = add_job(database, created_at=now - HOUR)
    claim(database, now=now - HOUR)

    assert look(healthy)["stuck jobs"].level is Level.BAD
    assert get_job(database, job.id).status is JobStatus.RUNNING

    repaired = look(healthy, may_repair=True)["stuck jobs"]
    assert (repaired.level, job.id in repaired.repaired) == (Level.OK, True)
    assert get_job(database, job.id).status is JobStatus.QUEUED


def test_a_task_whose_worker_is_gone_is_pointed_out(
    healthy: Settings, database: Database, now: datetime
) -> None:
    with database.reading() as session:
        checkpoint = session.scalars(select(Checkpoint).limit(1)).one()
    add_task(database, checkpoint, variant="gguf", created_at=now - HOUR)
    queued = look(healthy)["tasks"]
    claim_task(database, now=now - HOUR)

    assert (queued.level, queued.message) == (Level.OK, "export: 1 queued")
    assert look(healthy)["tasks"].level is Level.WARN


def test_a_job_that_runs_is_not_stuck(healthy: Settings, database: Database, now: datetime) -> None:
    job = add_job(database, created_at=now)
    claim(database, now=now)

    findings = look(healthy, may_repair=True)

    assert findings["stuck jobs"].level is Level.OK
    assert get_job(database, job.id).status is JobStatus.RUNNING


def test_a_queue_without_a_worker_is_pointed_out(
    healthy: Settings, database: Database, now: datetime
) -> None:
    add_job(database, created_at=now)
    assert look(healthy)["workers"].level is Level.WARN

    add_worker(database, now=now - HOUR)
    assert look(healthy)["workers"].level is Level.WARN
    add_worker(database, now=now)
    workers = look(healthy)["workers"]
    assert (workers.level, workers.message) == (Level.OK, "1 alive: 1 idle")


def test_exports_that_no_worker_makes_are_pointed_out(
    healthy: Settings, database: Database, add_checkpoint: AddCheckpoint, now: datetime
) -> None:
    job = add_job(database, **build_job_in(JobStatus.CANCELLED))
    add_task(database, add_checkpoint(job))

    workers = look(healthy)["workers"]

    assert (workers.level, workers.message) == (
        Level.WARN,
        "none is alive, and 1 exports or reports wait",
    )
    add_worker(database, now=now)
    assert look(healthy)["workers"].level is Level.OK


def test_rows_from_the_future_are_found(
    healthy: Settings, database: Database, store: LocalBlobStore, now: datetime
) -> None:
    add_file(database, store, created_at=now + HOUR)

    finding = look(healthy)["clock"]

    assert (finding.level, finding.message.split()[0]) == (Level.WARN, "1")


@pytest.mark.parametrize(
    ("spoil", "what", "is_deep"),
    [
        pytest.param(Path.unlink, "is missing", False, id="missing"),
        pytest.param(
            lambda path: path.write_bytes(b"x"), "has 1 bytes instead of", False, id="cut"
        ),
        pytest.param(
            lambda path: path.write_bytes(b"x" * path.stat().st_size),
            "does not have the bytes that were written",
            True,
            id="rotten",
        ),
    ],
)
def test_a_file_without_its_bytes_is_found(
    spoil: object,
    what: str,
    *,
    is_deep: bool,
    healthy: Settings,
    database: Database,
    store: LocalBlobStore,
    now: datetime,
) -> None:
    assert callable(spoil)
    file = add_file(database, store, created_at=now)
    spoil(healthy.blobs_dir / file.blob_key)

    finding = look(healthy, is_deep=is_deep, may_repair=True)["blobs"]

    assert finding.level is Level.BAD
    assert finding.message.startswith("1 of 10 are damaged")
    assert f"{file.blob_key} ({file.id}) {what}" in finding.message


def test_rot_shows_only_to_one_who_reads_every_byte(healthy: Settings) -> None:
    (blob,) = (healthy.blobs_dir / "files").iterdir()
    blob.write_bytes(b"x" * blob.stat().st_size)

    assert look(healthy)["blobs"].level is Level.OK
    assert look(healthy, is_deep=True)["blobs"].level is Level.BAD


def test_a_state_without_its_bytes_is_deleted_and_the_older_one_kept(
    healthy: Settings, database: Database
) -> None:
    (newest,) = healthy.blobs_dir.rglob("state-8/state.safetensors")
    newest.unlink()

    assert look(healthy)["saved states"].level is Level.BAD

    finding = look(healthy, may_repair=True)["saved states"]
    job_id = newest.parents[2].name
    with database.reading() as session:
        states = SavedStateRepository(session, DEFAULT_PROJECT_ID).list_newest(job_id)
    assert (finding.level, finding.repaired) == (Level.OK, f"deleted: step 8 of {job_id}")
    assert [state.step for state in states] == [4]
    assert not_ok(look(healthy)) == {}


def test_a_part_without_its_bytes_is_deleted_and_can_be_sent_again(
    healthy: Settings, database: Database
) -> None:
    (blob,) = (healthy.blobs_dir / "uploads").iterdir()
    blob.unlink()

    assert look(healthy)["upload parts"].level is Level.BAD

    finding = look(healthy, may_repair=True)["upload parts"]
    assert finding.level is Level.OK
    assert finding.repaired.startswith(f"1 deleted: uploads/{blob.name} ({blob.name}) is missing")
    with database.reading() as session:
        assert session.get(UploadPart, blob.name) is None
    assert not_ok(look(healthy)) == {}


def test_tokens_without_their_bytes_are_forgotten_and_made_again(
    healthy: Settings, database: Database
) -> None:
    (blob,) = (healthy.blobs_dir / "jobs").glob("*/tokens")
    blob.unlink()

    assert look(healthy)["tokens"].level is Level.BAD

    finding = look(healthy, may_repair=True)["tokens"]
    job_id = blob.parent.name
    assert (finding.level, finding.repaired) == (Level.OK, f"forgotten: those of {job_id}")
    with database.reading() as session:
        assert session.get_one(DataCheck, job_id).files is None
    assert not_ok(look(healthy)) == {}


def test_an_export_without_its_bytes_is_deleted_and_made_again(
    healthy: Settings, database: Database, store: LocalBlobStore
) -> None:
    with database.reading() as session:
        checkpoint = session.scalars(select(Checkpoint)).one()
    task = add_finished_export(database, store, checkpoint, {"adapter.gguf": b"GGUF"})
    assert not_ok(look(healthy, is_deep=True)) == {}
    store.delete((task.files or {})["adapter.gguf"]["key"])

    assert look(healthy)["exports"].level is Level.BAD

    finding = look(healthy, may_repair=True)["exports"]
    assert (finding.level, finding.repaired) == (Level.OK, f"deleted: {task.id}")
    assert not_ok(look(healthy)) == {}


def test_what_is_deleted_meanwhile_is_not_missing(
    healthy: Settings, database: Database, now: datetime
) -> None:
    class DeletingStore(LocalBlobStore):
        def open(self, key: str) -> BufferedReader:
            if key.startswith("files/"):
                execute(database, "DELETE FROM files WHERE blob_key = :key", key=key)
                self.delete(key)
            return super().open(key)

    store = DeletingStore(healthy.blobs_dir)

    findings = [*check_blobs(Patient(healthy, database, store, now))]

    assert [finding.level for finding in findings] == [Level.OK] * 5
    assert not [blob for blob in store.list_all() if blob.key.startswith("files/")]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"manifest_sha256": "0" * 64}, id="another-manifest"),
        pytest.param({"files": []}, id="of-other-files"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_manifest_says_is_found(
    changes: dict[str, object],
    *,
    healthy: Settings,
    database: Database,
    now: datetime,
    add_checkpoint: AddCheckpoint,
) -> None:
    job = add_job(database, created_at=now, status=JobStatus.PAUSED)
    checkpoint = add_checkpoint(job, 7, **changes)
    if "files" in changes:
        one = "checkpoint_id = :id AND filename LIKE 'a%'"
        execute(database, f"UPDATE files SET sha256 = '' WHERE {one}", id=checkpoint.id)  # noqa: S608

    finding = look(healthy)["manifests"]

    assert finding.level is Level.BAD
    assert finding.message.startswith(f"1 of 4 do not match their files: {checkpoint.id}")


def test_orphans_are_found_and_freed(healthy: Settings, store: LocalBlobStore) -> None:
    put_blob(store, "files/orphan", b"bytes")
    old = time.time() - 2 * 3600
    os.utime(healthy.blobs_dir / "files/orphan", (old, old))

    found = look(healthy)["orphans"]
    assert found.level is Level.WARN
    assert "1 blobs (5 bytes)" in found.message

    repaired = look(healthy, may_repair=True)["orphans"]
    assert (repaired.level, "freed 1 blobs" in repaired.repaired) == (Level.OK, True)
    assert "files/orphan" not in list_blobs(store)


def test_directories_that_a_child_has_nested_without_end_stop_no_check(healthy: Settings) -> None:
    cache = healthy.project_caches_dir / DEFAULT_PROJECT_ID / "1000"
    attempt = healthy.work_dir / "ftjob-hostile" / "attempt-1"
    with nested_directories(cache, levels=5000), nested_directories(attempt, levels=5000):
        found = look(healthy, may_repair=True)

        assert found["privacy"].level is Level.OK
        assert "1 job directories" in found["orphans"].repaired
        assert not attempt.exists()


def test_ballast_is_missed_and_made(healthy: Settings) -> None:
    Ballast(healthy).release()

    assert look(healthy)["ballast"].level is Level.WARN
    assert look(healthy, may_repair=True)["ballast"].repaired == "made"
    assert look(healthy)["ballast"].level is Level.OK


def test_no_ballast_wanted_is_pointed_out(healthy: Settings) -> None:
    settings = healthy.model_copy(update={"ballast_bytes": 0})

    assert look(settings, may_repair=True)["ballast"].level is Level.WARN


@pytest.mark.parametrize(
    ("free", "level"), [(MIB - 1, Level.BAD), (2 * MIB - 1, Level.WARN), (2 * MIB, Level.OK)]
)
def test_a_disk_that_fills_up_is_found(
    free: int, level: Level, *, healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = SimpleNamespace(f_files=0, f_favail=0, f_bavail=free, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: answer)

    assert look(healthy)["space"].level is level


MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /srv rw - tmpfs tmpfs rw
23 21 0:21 / /srv/share\\040with\\040space rw shared:7 - nfs4 host:/x rw
24 21 0:22 / /srv/twice rw - ext4 /dev/vdb rw
25 21 0:23 / /srv/twice rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/srv/x", "tmpfs"),
        ("/srv/share with space/data", "nfs4"),
        ("/srv/twice/data", "fuse.sshfs"),
        ("/srvx", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_deepest_mount(
    tmp_path: Path, directory: str, kind: str
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)

    assert file_system_of(Path(directory), tmp_path / "mountinfo") == kind


def test_this_machine_has_file_systems_too(tmp_path: Path) -> None:
    assert file_system_of(tmp_path.resolve()) != "unknown"
    assert file_system_of(Path("/proc/self")) == "proc"


@pytest.mark.only_sqlite
@pytest.mark.parametrize(
    ("kind", "level"),
    [("ext4", Level.OK), ("nfs4", Level.WARN), ("fuse.sshfs", Level.WARN), ("9p", Level.WARN)],
)
def test_sqlite_on_a_shared_file_system_is_pointed_out(
    kind: str,
    level: Level,
    *,
    healthy: Settings,
    database: Database,
    store: LocalBlobStore,
    tmp_path: Path,
    now: datetime,
) -> None:
    (tmp_path / "mountinfo").write_text(f"21 1 254:0 / / rw - {kind} /dev/vda rw\n")
    patient = Patient(healthy, database, store, now)

    (finding,) = check_file_system(patient, tmp_path / "mountinfo")

    assert finding.level is level


def test_a_check_that_fails_is_a_finding_and_the_others_are_made(
    healthy: Settings, database: Database
) -> None:
    execute(database, "ALTER TABLE workers RENAME TO hidden")
    try:
        findings = look(healthy)
    finally:
        execute(database, "ALTER TABLE hidden RENAME TO workers")

    assert findings["workers"].level is Level.BAD
    assert findings["workers"].message.startswith("could not be checked: ")
    assert "workers" in findings["workers"].message
    assert (findings["jobs"].level, findings["blobs"].level) == (Level.OK, Level.OK)


def test_a_service_that_is_stopped_can_be_examined(healthy: Settings, database: Database) -> None:
    database.dispose()

    assert not_ok(look(healthy)) == {}


def test_a_copy_of_a_service_can_be_examined(healthy: Settings, tmp_path: Path) -> None:
    shutil.copytree(healthy.data_dir, tmp_path / "copy")
    copy = healthy.model_copy(update={"data_dir": tmp_path / "copy"})

    assert not_ok(look(copy)) == {}


def test_what_other_users_may_read_is_closed(healthy: Settings) -> None:
    blob = next((healthy.blobs_dir / "files").iterdir())
    blob.chmod(0o640)

    found = look(healthy)["privacy"]
    repaired = look(healthy, may_repair=True)["privacy"]

    assert (found.level, str(blob) in found.message) == (Level.WARN, True)
    assert (repaired.level, repaired.repaired) == (Level.OK, "closed 1 files")
    assert stat.S_IMODE(blob.stat().st_mode) == 0o600


def test_an_open_data_directory_is_bad(healthy: Settings) -> None:
    healthy.data_dir.chmod(0o750)

    assert look(healthy)["privacy"].level is Level.BAD


@pytest.mark.parametrize("name", ["models/tiny/weights", "work/ftjob-1/job.json"])
def test_what_a_child_of_another_user_needs_may_be_readable(healthy: Settings, name: str) -> None:
    path = healthy.data_dir / name
    for parent in reversed(path.relative_to(healthy.data_dir).parents[:-1]):
        (healthy.data_dir / parent).mkdir(mode=0o755, exist_ok=True)
    for directory in (healthy.data_dir / "models", healthy.work_dir):
        if directory.exists():
            directory.chmod(0o700)
    path.write_bytes(b"")
    path.chmod(0o644)

    assert look(healthy)["privacy"].level is Level.OK


def test_a_base_model_with_another_file_is_bad(healthy: Settings) -> None:
    (healthy.data_dir / "models/tiny" / "modeling.py").touch(mode=0o600)

    assert look(healthy)["base models"].message == "tiny: modeling.py was added or removed"


def test_a_changed_file_of_a_base_model_is_found_by_a_deep_look(healthy: Settings) -> None:
    directory = healthy.data_dir / "models/tiny"
    record = json.loads((directory / RECORD_NAME).read_bytes())
    (directory / RECORD_NAME).write_text(json.dumps(record | {"files": {"config.json": "0" * 64}}))
    (directory / "config.json").touch(mode=0o600)

    assert look(healthy)["base models"].level is Level.OK
    found = look(healthy, is_deep=True)["base models"]
    assert (found.level, "config.json was changed" in found.message) == (Level.BAD, True)


def test_a_signature_by_another_key_is_bad(
    healthy: Settings, database: Database, add_checkpoint: AddCheckpoint, now: datetime
) -> None:
    """Until the service's own key signs."""
    job = add_job(database, created_at=now, status=JobStatus.PAUSED)
    add_checkpoint(job, 6, keys=SigningKeys(healthy.data_dir / "other"))
    add_checkpoint(job, 7, keys=SigningKeys(healthy.signing_dir))

    found = look(healthy)["manifests"]

    assert (found.level, found.message.startswith("1 of 5 do not match")) == (Level.BAD, True)
    assert "step 6" in found.message
    assert "not signed with a key of this service" in found.message


def test_a_sandbox_that_is_off_is_a_warning(healthy: Settings) -> None:
    findings = look(healthy.model_copy(update={"sandbox": "off"}))

    assert not_ok(findings) == {"sandbox": Level.WARN}
    assert "TUNERY_SANDBOX" in findings["sandbox"].message


@contextmanager
def answering_in(sampler_dir: Path) -> Iterator[None]:
    """A sampler that answers one question whether it is there."""
    sampler_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with socket_path(sampler_dir) as path:
            listener.bind(path)
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4)
                connection.sendall(b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def test_a_sampler_that_has_died_is_a_warning(healthy: Settings) -> None:
    assert "not started" in look(healthy)["sampler"].message
    with answering_in(healthy.sampler_dir):
        assert "takes requests" in look(healthy)["sampler"].message

    assert not_ok(look(healthy)) == {"sampler": Level.WARN}
    assert "off" in look(healthy.model_copy(update={"sampling": "off"}))["sampler"].message
