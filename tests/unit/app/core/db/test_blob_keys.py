from contextlib import nullcontext
from dataclasses import replace

import pytest

from app.core.db.blob_keys import BlobKeyRepository, NamedBlob, iterate_named
from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    add_file,
    add_job,
    add_part,
    add_tokens,
    build_saved_state,
    build_upload,
)


def add_state(database: Database, job_id: str, step: int, *keys: str) -> None:
    files = {key.rpartition("/")[2]: {"key": key, "bytes": 1, "sha256": "0" * 64} for key in keys}
    state = build_saved_state(job_id, step, files)
    with database.writing() as session:
        session.add(state)


def find_named(database: Database, *keys: str) -> set[str]:
    with database.reading() as session:
        return BlobKeyRepository(session).find_named(keys)


def test_every_row_that_has_blobs_names_them(database: Database, store: LocalBlobStore) -> None:
    file, job = add_file(database, store), add_job(database)
    part = add_part(database, store, build_upload())
    add_state(database, job.id, 5, "jobs/j/a", "jobs/j/b")
    add_tokens(database, job, None, "jobs/j/tokens")
    keys = {file.blob_key, part.blob_key, "jobs/j/b", "jobs/j/tokens"}

    assert find_named(database, *keys, "jobs/j/c", "files/other") == keys


def test_it_is_known_whether_anything_is_named(database: Database, store: LocalBlobStore) -> None:
    with database.reading() as session:
        assert not BlobKeyRepository(session).names_any()
    add_state(database, add_job(database).id, 5, "jobs/j/a")
    with database.reading() as session:
        assert BlobKeyRepository(session).names_any()


@pytest.mark.parametrize("page", [1, 2, 3, 500])
def test_every_named_blob_comes_once_however_long_a_page_is(
    page: int, database: Database, store: LocalBlobStore
) -> None:
    files = [add_file(database, store) for _ in range(5)]
    upload = build_upload()
    parts = [add_part(database, store, upload, bytes([number])) for number in range(3)]
    jobs = [add_job(database) for _ in range(2)]
    for job in jobs:
        for step in (9, 10):
            add_state(database, job.id, step, f"{job.id}/{step}/a", f"{job.id}/{step}/b")
        add_tokens(database, job, None, f"{job.id}/a", f"{job.id}/b")
    add_job(database)  # it has no tokens

    named = list(iterate_named(database.reading, page_rows=page))

    assert [blob.file_id for blob in named[:5]] == [file.id for file in files]
    assert [blob.part_id for blob in named[5:8]] == [part.id for part in parts]
    assert [(blob.job_id, blob.step) for blob in named[8:16]] == [
        (job.id, step) for job in jobs for step in (9, 9, 10, 10)
    ]
    assert [(blob.checked_job_id, blob.key) for blob in named[16:]] == [
        (job.id, f"{job.id}/{name}") for job in jobs for name in "ab"
    ]
    assert named[0] == NamedBlob(
        files[0].blob_key, files[0].bytes, files[0].sha256, file_id=files[0].id
    )


def test_pages_of_one_session_show_one_moment(database: Database, store: LocalBlobStore) -> None:
    file = add_file(database, store)
    with database.reading() as session:
        named = iterate_named(lambda: nullcontext(session))
        first = next(named)
        add_file(database, store)

        assert [first.file_id, *(blob.file_id for blob in named)] == [file.id]


def test_a_row_that_has_changed_names_its_blob_no_more(
    database: Database, store: LocalBlobStore
) -> None:
    add_file(database, store)
    add_part(database, store, build_upload())
    job = add_job(database)
    add_state(database, job.id, 5, "jobs/j/a")
    add_tokens(database, job)
    named = list(iterate_named(database.reading))
    gone = [replace(blob, key=blob.key + "x") for blob in named]

    with database.reading() as session:
        keys = BlobKeyRepository(session)
        assert [keys.still_names(blob) for blob in named] == [True] * 4
        assert [keys.still_names(blob) for blob in gone] == [False] * 4


def test_a_deleted_state_names_nothing(database: Database) -> None:
    job = add_job(database)
    add_state(database, job.id, 5, "jobs/j/5")
    add_state(database, job.id, 9, "jobs/j/9")

    with database.writing() as session:
        BlobKeyRepository(session).delete_saved_state(job.id, 9)

    assert [blob.key for blob in iterate_named(database.reading)] == ["jobs/j/5"]
