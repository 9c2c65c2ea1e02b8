"""What every blob store must do: a directory, three servers of S3, and two stores of a move."""

import os
import random
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.core.errors import BlobExistsError, BlobNotFoundError
from app.core.storage.blob_store import RESERVED, BlobStore
from app.core.storage.local import LocalBlobStore
from app.core.storage.moving import MovingBlobStore
from app.core.storage.s3.reader import FIRST_BYTES
from app.core.storage.s3.store import PART_BYTES
from tests.builders import put_blob
from tests.stores.servers import NAMES, StoreServer


class HalfMoved(MovingBlobStore):
    """Puts about half of the keys where processes with the old settings put them."""

    def store_of(self, key: str) -> BlobStore:
        return self.previous if zlib.crc32(key.encode()) % 2 else self.present

    def put(self, key: str, scratch: Path) -> None:
        self.store_of(key).put(key, scratch)


@pytest.fixture(params=["local", *NAMES, "local local", "moto local", "local rclone"])
def blobs(tmp_path: Path, request: pytest.FixtureRequest, store_prefix: str) -> BlobStore:
    """One store by its name; or a present store and the previous one behind it."""

    def open_one(name: str, root: Path) -> BlobStore:
        if name == "local":
            return LocalBlobStore(root)
        server: StoreServer = request.getfixturevalue("store_server")(name)
        return server.store(root, prefix=store_prefix)

    present, _, previous = request.param.partition(" ")
    store = open_one(present, tmp_path / "blobs")
    return HalfMoved(store, open_one(previous, tmp_path / "previous")) if previous else store


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


def test_a_key_put_again_has_either_bytes_and_never_a_mixture(blobs: BlobStore) -> None:
    old, new = b"o" * 1000, b"new" * 1000
    put_blob(blobs, "jobs/j/attempt-1/log", old)
    kept = new
    try:
        put_blob(blobs, "jobs/j/attempt-1/log", new)
    except BlobExistsError:
        kept = old
        assert not isinstance(blobs, LocalBlobStore)

    assert read(blobs, "jobs/j/attempt-1/log") == kept


def test_the_same_bytes_may_be_put_again(blobs: BlobStore) -> None:
    """As after a request that succeeded and whose answer was lost."""
    put_blob(blobs, "jobs/j/attempt-1/log", b"bytes")
    put_blob(blobs, "jobs/j/attempt-1/log", b"bytes")

    assert read(blobs, "jobs/j/attempt-1/log") == b"bytes"
    assert list(blobs.list_scratch()) == []


def test_a_reader_has_what_it_opened_or_learns_that_it_is_gone(blobs: BlobStore) -> None:
    put_blob(blobs, "files/file-1", b"old")

    with blobs.open("files/file-1") as blob:
        blobs.delete("files/file-1")
        try:
            content = blob.read()
        except BlobNotFoundError:
            assert not isinstance(blobs, LocalBlobStore)
            return
    assert content == b"old"


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

    blobs.delete("files/file-1")
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


def test_a_blob_has_the_age_of_its_bytes_or_of_its_upload(blobs: BlobStore) -> None:
    scratch = blobs.scratch_file()
    scratch.write_bytes(b"bytes")
    os.utime(scratch, (time.time() - 100,) * 2)

    blobs.put("files/file-1", scratch)

    (blob,) = blobs.list_all()
    store = blobs.store_of(blob.key) if isinstance(blobs, HalfMoved) else blobs
    assert blob.age_s == pytest.approx(100 if isinstance(store, LocalBlobStore) else 0, abs=10)


def test_more_blobs_than_a_page_are_listed_once_each(blobs: BlobStore) -> None:
    keys = [f"jobs/j{number % 7}/log-{number}" for number in range(1050)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: put_blob(blobs, key, b"x"), keys))

    assert sorted(blob.key for blob in blobs.list_all()) == sorted(keys)


LARGE = 3 * PART_BYTES + 12_345
"""Bytes that a bucket is given in four parts."""


def test_a_large_blob_is_read_from_anywhere(blobs: BlobStore) -> None:
    content = random.Random(1).randbytes(LARGE)  # noqa: S311
    put_blob(blobs, "jobs/j/adapter", content)

    with blobs.open("jobs/j/adapter") as blob:
        assert blob.read() == content
        for offset in (LARGE - 1, 0, FIRST_BYTES - 1, 7 * 1024 * 1024, LARGE, LARGE + 5):
            assert blob.seek(offset) == offset
            assert blob.read(100_000) == content[offset : offset + 100_000]
        assert blob.seek(-10, os.SEEK_END) == LARGE - 10
        assert blob.read() == content[-10:]
    assert [blob.bytes for blob in blobs.list_all()] == [LARGE]


def test_keys_may_have_any_character_of_a_file_name(blobs: BlobStore) -> None:
    keys = ["jobs/j/a b+c=d", "jobs/j/ü%20&x", "jobs/j/model-00001-of-2.safetensors"]
    for key in keys:
        put_blob(blobs, key, key.encode())

    assert [read(blobs, key) for key in keys] == [key.encode() for key in keys]
    assert sorted(blob.key for blob in blobs.list_all()) == sorted(keys)


def test_what_a_store_keeps_for_itself_is_not_listed(blobs: BlobStore) -> None:
    put_blob(blobs, f"{RESERVED}about", b"the id of a store")
    put_blob(blobs, "files/.hidden", b"bytes")

    assert read(blobs, f"{RESERVED}about") == b"the id of a store"
    assert [blob.key for blob in blobs.list_all()] == ["files/.hidden"]


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
