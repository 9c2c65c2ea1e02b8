import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.db.session import Database
from app.core.orphans import GRACE_S, LONG_GRACE_S, find_orphans, free_orphans
from app.core.settings import Settings
from app.core.storage.blob_store import StoredBlob
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    add_file,
    add_job,
    add_part,
    build_saved_state,
    build_upload,
    claim,
    list_blobs,
    nested_directories,
    put_blob,
)

SOON, LATE = GRACE_S - 60, GRACE_S + 60


def make_old(path: Path, age_s: float) -> None:
    written_at = time.time() - age_s
    os.utime(path, (written_at, written_at))


def put_old(store: LocalBlobStore, key: str, age_s: float) -> None:
    put_blob(store, key, b"bytes")
    make_old(store.scratch_file().parents[1] / key, age_s)


def test_blobs_that_no_row_names_are_freed_once_they_are_old(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    file, job = add_file(database, store), add_job(database)
    part = add_part(database, store, build_upload())
    put_old(store, file.blob_key, LATE)
    put_old(store, part.blob_key, LATE)
    put_old(store, "uploads/part_old", LATE)
    put_old(store, "jobs/j/attempt-1/state/optimizer", LATE)
    with database.writing() as session:
        files = {"optimizer": {"key": "jobs/j/attempt-1/state/optimizer", "bytes": 5, "sha256": ""}}
        session.add(build_saved_state(job.id, 1, files))
    put_old(store, "files/young", SOON)
    put_old(store, "files/old", LATE)
    put_old(store, "jobs/k/attempt-1/step-1/adapter", LATE)

    freed = free_orphans(database, store, settings)

    assert (freed.blobs, freed.bytes) == (3, 15)
    assert list_blobs(store) == sorted(
        [file.blob_key, part.blob_key, "files/young", "jobs/j/attempt-1/state/optimizer"]
    )


@pytest.mark.parametrize("bucket", ["store_url", "store_previous_url"])
def test_what_may_be_on_its_way_to_a_bucket_is_left_alone_for_a_day(
    database: Database, store: LocalBlobStore, settings: Settings, bucket: str
) -> None:
    settings = settings.model_copy(update={bucket: "s3://bucket/tunery"})
    add_file(database, store)
    scratch = store.scratch_file()
    scratch.write_bytes(b"is being put")
    put_old(store, "files/large", LATE)
    make_old(scratch, LATE)

    assert not find_orphans(database, store, settings)

    put_old(store, "files/large", LONG_GRACE_S + 60)
    make_old(scratch, LONG_GRACE_S + 60)
    found = find_orphans(database, store, settings)
    assert (found.blobs, found.scratch_files) == (1, 1)


def test_finding_frees_nothing(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    add_file(database, store)
    put_old(store, "files/old", LATE)
    before = list_blobs(store)

    found = find_orphans(database, store, settings)

    assert bool(found)
    assert found.blobs == 1
    assert list_blobs(store) == before


def test_a_service_in_good_order_has_none(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    add_file(database, store)

    assert not find_orphans(database, store, settings)


def test_a_database_that_names_nothing_is_not_believed(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    """Such as an empty one, by a mistake in TUNERY_DATABASE_URL: it would cost every blob."""
    put_old(store, "files/old", LATE)

    assert not free_orphans(database, store, settings)
    assert list_blobs(store) == ["files/old"]


def test_many_are_looked_up_batch_by_batch(
    database: Database,
    store: LocalBlobStore,
    settings: Settings,
) -> None:
    kept = add_file(database, store)
    make_old(store.scratch_file().parents[1] / kept.blob_key, LATE)
    for number in range(7):
        put_old(store, f"files/old-{number}", LATE)

    assert free_orphans(database, store, settings, batch=2).blobs == 7
    assert list_blobs(store) == [kept.blob_key]


class SlowStore(LocalBlobStore):
    """While it lists, a blob that has been put is published, as by another process."""

    def __init__(self, root: Path, database: Database) -> None:
        super().__init__(root)
        self._database = database

    def list_all(self) -> Iterator[StoredBlob]:
        listed = list(super().list_all())
        file = add_file(self._database, self)
        put_old(self, file.blob_key, LATE)
        yield from [*listed, StoredBlob(file.blob_key, 5, age_s=LATE)]


def test_rows_are_looked_at_after_the_blobs(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    add_file(database, store)

    freed = free_orphans(database, SlowStore(settings.blobs_dir, database), settings)

    assert not freed
    assert len(list_blobs(store)) == 2


def test_scratch_files_of_broken_off_uploads_are_freed(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    for age_s in (SOON, LATE):
        scratch = store.scratch_file()
        scratch.write_bytes(b"half of an upload")
        make_old(scratch, age_s)

    assert free_orphans(database, store, settings).scratch_files == 1
    assert len(list(store.list_scratch())) == 1


def make_directory(settings: Settings, name: str) -> Path:
    """An old job directory with something in it."""
    inner = settings.work_dir / name / "attempt-1" / "out"
    inner.mkdir(parents=True)
    (inner / "adapter").write_bytes(b"bytes")
    for path in (inner / "adapter", inner, inner.parent, inner.parent.parent):
        make_old(path, LATE)
    return settings.work_dir / name


def test_directories_of_jobs_that_do_not_run_are_removed(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    running = add_job(database)
    claim(database)
    waiting = add_job(database)
    kept = [make_directory(settings, running.id), make_directory(settings, "slot-0")]
    touched = make_directory(settings, add_job(database).id)
    (touched / "attempt-1" / "out" / "adapter").write_bytes(b"a child that still writes")
    unknown = ("ftjob-unknown", "task_unknown")
    gone = [make_directory(settings, name) for name in (waiting.id, *unknown)]

    freed = free_orphans(database, store, settings)

    assert freed.job_directories == 3
    assert all(path.exists() for path in [*kept, touched])
    assert not any(path.exists() for path in gone)


def test_what_a_backup_that_was_killed_has_held_is_freed(
    database: Database, store: LocalBlobStore, settings: Settings
) -> None:
    for name, age_s in {"killed": LONG_GRACE_S + 60, "running": LONG_GRACE_S - 60}.items():
        held = settings.data_dir / f".backup-{name}" / "files"
        held.mkdir(parents=True)
        (held / "file-1").write_bytes(b"bytes")
        for path in (held / "file-1", held, held.parent):
            make_old(path, LONG_GRACE_S + 60 if path.is_file() else age_s)

    assert free_orphans(database, store, settings).held_directories == 1
    assert [path.name for path in settings.data_dir.glob(".backup-*")] == [".backup-running"]


@pytest.mark.parametrize("name", ["d", "d" * 250], ids=["short names", "long names"])
def test_directories_that_a_child_has_nested_without_end_are_removed(
    database: Database, store: LocalBlobStore, settings: Settings, name: str
) -> None:
    attempt = settings.work_dir / "ftjob-hostile" / "attempt-1"
    after_it = settings.data_dir / ".backup-killed"
    after_it.mkdir()
    make_old(after_it, LONG_GRACE_S + 60)

    with nested_directories(attempt, levels=5000, name=name):
        freed = free_orphans(database, store, settings)

        assert (freed.job_directories, freed.held_directories) == (1, 1)
        assert not attempt.parent.exists()
        assert not after_it.exists()
