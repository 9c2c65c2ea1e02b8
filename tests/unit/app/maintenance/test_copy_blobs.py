"""What the copy of a store does with blobs that are whole, damaged, gone or already there."""

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from io import BufferedReader
from pathlib import Path

import pytest

from app.core.db.blob_keys import NamedBlob
from app.core.db.session import Database
from app.core.db.tables import File
from app.core.errors import StorageFullError
from app.core.storage.local import LocalBlobStore
from app.maintenance.store.copy_blobs import BlobCopier, CopyReport, iterate_blobs
from tests.builders import (
    add_file,
    add_job,
    add_part,
    add_tokens,
    build_upload,
    list_blobs,
    put_blob,
)
from tests.unit.app.maintenance.conftest import AddState


@pytest.fixture
def target(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "target")


@pytest.fixture
def copier(database: Database, store: LocalBlobStore, target: LocalBlobStore) -> BlobCopier:
    return BlobCopier(database, store, target)


def run(copier: BlobCopier) -> CopyReport:
    return copier.copy_all(iterate_blobs(copier.database), lambda _: None)


def read(store: LocalBlobStore, key: str) -> bytes:
    with store.open(key) as blob:
        return blob.read()


def delete_row(database: Database, file: File) -> None:
    with database.writing() as session:
        session.delete(session.get_one(File, file.id))


class MeddledStore(LocalBlobStore):
    """Does something just before a blob is opened."""

    def __init__(self, root: Path, meddle: Callable[[str], None]) -> None:
        super().__init__(root)
        self._meddle = meddle

    def open(self, key: str) -> BufferedReader:
        self._meddle(key)
        return super().open(key)


def test_every_blob_that_a_row_names_is_copied(
    copier: BlobCopier,
    database: Database,
    store: LocalBlobStore,
    target: LocalBlobStore,
    add_state: AddState,
) -> None:
    add_file(database, store)
    add_part(database, store, build_upload(), b"part")
    job = add_job(database)
    add_state(job, 5)
    add_tokens(database, job, store, f"jobs/{job.id}/tokens")
    put_blob(store, "files/orphan", b"named by no row")

    report = run(copier)

    keys = [key for key in list_blobs(store) if key != "files/orphan"]
    assert list_blobs(target) == keys
    assert {key: read(target, key) for key in keys} == {key: read(store, key) for key in keys}
    assert (report.blobs, report.copied, report.damaged) == (len(keys), len(keys), [])
    assert report.bytes == report.copied_bytes == sum(len(read(store, key)) for key in keys)


def test_what_is_there_is_not_copied_again(
    copier: BlobCopier, database: Database, store: LocalBlobStore, target: LocalBlobStore
) -> None:
    file = add_file(database, store)
    run(copier)
    store.delete(file.blob_key)  # it is not even read

    report = run(copier)

    assert (report.blobs, report.copied, report.damaged) == (1, 0, [])


def test_a_shorter_blob_of_the_target_is_copied_again(
    copier: BlobCopier, database: Database, store: LocalBlobStore, target: LocalBlobStore
) -> None:
    file = add_file(database, store, b"0123456789")
    put_blob(target, file.blob_key, b"01234")

    assert run(copier).copied == 1
    assert read(target, file.blob_key) == b"0123456789"


def test_only_a_copy_that_verifies_notices_other_bytes(
    copier: BlobCopier, database: Database, store: LocalBlobStore, target: LocalBlobStore
) -> None:
    file = add_file(database, store, b"0123456789")
    put_blob(target, file.blob_key, b"012345678x")

    assert run(copier).copied == 0
    assert run(replace(copier, verifies=True)).copied == 1
    assert read(target, file.blob_key) == b"0123456789"


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (b"012345678x", "does not have the bytes that were written"),
        (b"01234", "does not have the 10 bytes that were written"),
        (b"0123456789 and more", "does not have the 10 bytes that were written"),
        (None, "is missing"),
    ],
)
def test_a_damaged_blob_is_reported_and_never_copied(
    copier: BlobCopier,
    store: LocalBlobStore,
    target: LocalBlobStore,
    content: bytes | None,
    damage: str,
) -> None:
    database = copier.database
    file, whole = add_file(database, store, b"0123456789"), add_file(database, store)
    store.delete(file.blob_key)
    if content is not None:
        put_blob(store, file.blob_key, content)

    report = run(copier)

    assert report.damaged == [f"{file.blob_key} ({file.id}) {damage}"]
    assert list_blobs(target) == [whole.blob_key]


def test_a_bad_sector_costs_one_blob(
    copier: BlobCopier, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    bad, _ = add_file(database, store), add_file(database, store)

    class BadSector(BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    class BadDisk(LocalBlobStore):
        def open(self, key: str) -> BufferedReader:
            blob = super().open(key)
            return BadSector(blob.detach()) if key == bad.blob_key else blob

    report = run(replace(copier, source=BadDisk(tmp_path / "data/blobs")))

    assert report.damaged == [
        f"{bad.blob_key} ({bad.id}) cannot be read: [Errno 5] Input/output error"
    ]
    assert report.copied == 1


def test_a_blob_that_is_deleted_meanwhile_is_not_damaged(
    copier: BlobCopier, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    file = add_file(database, store)

    def delete(key: str) -> None:
        delete_row(database, file)
        store.delete(key)

    report = run(replace(copier, source=MeddledStore(tmp_path / "data/blobs", delete)))

    assert (report.blobs, report.gone, report.copied, report.damaged) == (1, 1, 0, [])


def test_a_full_disk_ends_the_copy(
    copier: BlobCopier, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    class FullDisk(LocalBlobStore):
        def put(self, key: str, scratch: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    add_file(database, store)
    full = FullDisk(tmp_path / "full")

    with pytest.raises(StorageFullError):
        run(replace(copier, target=full))
    assert list(full.list_scratch()) == []


def test_blobs_are_copied_at_once_but_not_all_of_them(
    copier: BlobCopier, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    for _ in range(9):
        add_file(database, store)
    together, most = threading.Barrier(3), [0, 0]
    lock = threading.Lock()

    class Counting(LocalBlobStore):
        def put(self, key: str, scratch: Path) -> None:
            with lock:
                most[0] += 1
                most[1] = max(most)
            together.wait(30)
            super().put(key, scratch)
            with lock:
                most[0] -= 1

    report = run(replace(copier, target=Counting(tmp_path / "counting"), parallel=3))

    assert report.copied == 9
    assert most[1] == 3


def test_few_rows_are_read_ahead(
    copier: BlobCopier, database: Database, store: LocalBlobStore
) -> None:
    """Else a large installation would not fit into memory."""
    file = add_file(database, store)
    blob = NamedBlob(file.blob_key, file.bytes, file.sha256, file_id=file.id)
    listed, ahead = 0, []

    def list_blobs_lazily():
        nonlocal listed
        for _ in range(500):
            listed += 1
            yield blob

    def look(report: CopyReport) -> None:
        ahead.append(listed - report.blobs)

    copier.copy_all(list_blobs_lazily(), look)

    assert max(ahead) < 50
