"""What every blob store must do; so far there is one, in a directory."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.errors import BlobNotFoundError
from app.core.storage.blob_store import BlobStore
from app.core.storage.local import LocalBlobStore
from tests.builders import put_blob
from tests.stores.servers import NAMES, StoreServer


@pytest.fixture(params=["local", *NAMES])
def blobs(tmp_path: Path, request: pytest.FixtureRequest, store_prefix: str) -> BlobStore:
    if request.param == "local":
        return LocalBlobStore(tmp_path / "blobs")
    start: Callable[[str], StoreServer] = request.getfixturevalue("store_server")
    return start(request.param).store(tmp_path / "scratch", prefix=store_prefix)


def read(blobs: BlobStore, key: str) -> bytes:
    with blobs.open(key) as blob:
        return blob.read()


@pytest.mark.parametrize("content", [b"", b"bytes", bytes(range(256)) * 10_000])
def test_what_was_put_is_what_is_read(blobs: BlobStore, content: bytes) -> None:
    put_blob(blobs, "files/file-1", content)

    assert read(blobs, "files/file-1") == content


def test_a_blob_can_be_read_from_anywhere(blobs: BlobStore) -> None:
    put_blob(blobs, "files/file-1", b"0123456789")

    with blobs.open("files/file-1") as blob:
        blob.seek(4)
        assert blob.read(3) == b"456"


def test_putting_takes_the_scratch_file_away(blobs: BlobStore) -> None:
    scratch = blobs.scratch_file()
    scratch.write_bytes(b"bytes")

    blobs.put("files/file-1", scratch)

    assert not scratch.exists()


def test_scratch_files_do_not_meet(blobs: BlobStore) -> None:
    first, second = blobs.scratch_file(), blobs.scratch_file()

    assert first != second
    assert not first.exists()


def test_a_key_put_again_has_the_newer_bytes(blobs: BlobStore) -> None:
    put_blob(blobs, "jobs/j/attempt-1/log", b"old")
    put_blob(blobs, "jobs/j/attempt-1/log", b"new")

    assert read(blobs, "jobs/j/attempt-1/log") == b"new"


def test_a_reader_keeps_what_it_opened(blobs: BlobStore) -> None:
    put_blob(blobs, "files/file-1", b"old")

    with blobs.open("files/file-1") as blob:
        blobs.delete("files/file-1")
        assert blob.read() == b"old"


@pytest.mark.parametrize("key", ["files/none", "files", "none/of/these", "files/file-1/x"])
def test_what_is_not_there_is_not_found(blobs: BlobStore, key: str) -> None:
    put_blob(blobs, "files/file-1", b"bytes")

    with pytest.raises(BlobNotFoundError):
        blobs.open(key)


def test_a_deleted_blob_is_gone_and_the_others_stay(blobs: BlobStore) -> None:
    for name in ("a", "b"):
        put_blob(blobs, f"jobs/j/{name}", name.encode())

    blobs.delete("jobs/j/a")

    with pytest.raises(BlobNotFoundError):
        blobs.open("jobs/j/a")
    assert read(blobs, "jobs/j/b") == b"b"


@pytest.mark.parametrize("key", ["files/file-1", "never/was/there"])
def test_deleting_again_is_no_error(blobs: BlobStore, key: str) -> None:
    put_blob(blobs, "files/file-1", b"bytes")

    blobs.delete(key)
    blobs.delete(key)

    put_blob(blobs, "files/file-1", b"again")
    assert read(blobs, "files/file-1") == b"again"


def test_every_blob_is_listed_and_nothing_else(blobs: BlobStore) -> None:
    put_blob(blobs, "files/file-1", b"12345")
    put_blob(blobs, "jobs/j/attempt-1/step-5/adapter", b"")
    put_blob(blobs, "files/deleted", b"bytes")
    blobs.delete("files/deleted")
    blobs.scratch_file().write_bytes(b"not a blob yet")

    listed = {blob.key: blob.bytes for blob in blobs.list_all()}

    assert listed == {"files/file-1": 5, "jobs/j/attempt-1/step-5/adapter": 0}


def test_a_blob_is_as_old_as_its_bytes(blobs: BlobStore) -> None:
    scratch = blobs.scratch_file()
    scratch.write_bytes(b"bytes")
    os.utime(scratch, (time.time() - 100,) * 2)

    blobs.put("files/file-1", scratch)

    assert [blob.age_s for blob in blobs.list_all()] == [pytest.approx(100, abs=10)]


def test_blobs_may_be_deleted_while_they_are_listed(blobs: BlobStore) -> None:
    keys = [f"jobs/j{number}/attempt-1/log" for number in range(50)]
    for key in keys:
        put_blob(blobs, key, b"bytes")

    listed: list[str] = []
    for blob in blobs.list_all():
        listed.append(blob.key)
        blobs.delete(blob.key)

    assert sorted(listed) == sorted(keys)
    assert list(blobs.list_all()) == []


def test_what_was_written_and_never_put_is_listed_as_scratch(blobs: BlobStore) -> None:
    put_blob(blobs, "files/file-1", b"bytes")
    scratch = blobs.scratch_file()
    assert list(blobs.list_scratch()) == []

    scratch.write_bytes(b"bytes")

    assert list(blobs.list_scratch()) == [scratch]


@pytest.mark.parametrize("key", ["../outside", "files/../../outside", "/etc/passwd"])
def test_no_key_leaves_the_store(blobs: BlobStore, key: str) -> None:
    with pytest.raises(ValueError, match="leaves the store"):
        blobs.open(key)
