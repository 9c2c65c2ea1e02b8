"""S3 behind a network that fails: nothing is lost, doubled or half, and everything is checked."""

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.errors import BlobNotFoundError, StoreAwayError
from app.core.manifest import ManifestError
from app.core.settings.store_urls import BucketAddress
from app.core.storage.s3 import S3Access, S3BlobStore
from app.core.storage.s3.store import PART_BYTES
from tests.builders import put_blob
from tests.stores.faulty_proxy import PASSING, Fault, FaultyProxy, Seen
from tests.stores.servers import NAMES, StoreServer, environment_of, free_port
from worker.stored_file import copy_checked

LARGE = 2 * PART_BYTES + 1
SMALL_TEXT = b"a line\n" * 1000


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311 - no secret


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest) -> StoreServer:
    return request.getfixturevalue("store_server")(request.param)


@pytest.fixture
def proxy(server: StoreServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def blobs(
    server: StoreServer, proxy: FaultyProxy, tmp_path: Path, store_prefix: str
) -> S3BlobStore:
    return server.store(tmp_path / "scratch", prefix=store_prefix, endpoint=proxy.endpoint)


def read(blobs: S3BlobStore, key: str) -> bytes:
    with blobs.open(key) as blob:
        return blob.read()


@pytest.mark.parametrize(
    ("fault", "size"),
    [
        *((fault, size) for fault in (*PASSING, Fault.SLOW) for size in (0, 10_000)),
        (Fault.LOST_ANSWER, LARGE),
        (Fault.TORN_REQUEST, LARGE),
        *(
            pytest.param(fault, LARGE, marks=pytest.mark.long)
            for fault in (Fault.BUSY, Fault.RESET, Fault.TORN_ANSWER)
        ),
    ],
)
def test_a_fault_at_any_request_changes_nothing(
    blobs: S3BlobStore, proxy: FaultyProxy, fault: Fault, size: int
) -> None:
    """Each request in the life of a blob fails once. The second round shows how many there are."""
    content = content_of(size)

    def live(key: str) -> None:
        put_blob(blobs, key, content)
        assert read(blobs, key) == content
        assert [(blob.key, blob.bytes) for blob in blobs.list_all()] == [(key, size)]
        blobs.delete(key)
        assert list(blobs.list_all()) == []

    live("jobs/j/first/log")
    asked_before = len(proxy.requests)  # the store has learned how its server answers
    live("jobs/j/attempt-0/log")
    requests = len(proxy.requests) - asked_before
    for number in range(1, requests + 1):
        failing = len(proxy.requests) + number
        proxy.choose = lambda seen, failing=failing: fault if seen.number == failing else None
        live(f"jobs/j/attempt-{number}/log")
        assert len(proxy.requests) >= failing
    assert list(blobs.list_scratch()) == []


def test_half_of_all_requests_may_fail(blobs: S3BlobStore, proxy: FaultyProxy) -> None:
    dice = random.Random(5)  # noqa: S311 - no secret
    proxy.choose = lambda _seen: dice.choice(PASSING) if dice.random() < 0.5 else None
    kept = {f"files/file-{size}": content_of(size) for size in (0, 1, 5000, 600_000, LARGE)}

    for key, content in kept.items():
        put_blob(blobs, key, content)
        put_blob(blobs, f"{key}-deleted", content)
        blobs.delete(f"{key}-deleted")

    assert {key: read(blobs, key) for key in kept} == kept
    proxy.choose = lambda _seen: None
    assert {blob.key: blob.bytes for blob in blobs.list_all()} == {
        key: len(content) for key, content in kept.items()
    }


def test_a_torn_transfer_goes_on_where_it_broke_off(blobs: S3BlobStore, proxy: FaultyProxy) -> None:
    content = content_of(LARGE)
    put_blob(blobs, "jobs/j/adapter", content)
    asked = len(proxy.requests)
    dice = random.Random(7)  # noqa: S311 - no secret
    proxy.choose = lambda _seen: Fault.TORN_ANSWER if dice.random() < 0.5 else None

    assert read(blobs, "jobs/j/adapter") == content

    # Ranges of up to 4 MiB, each of which broke off at most a few times: not the whole again.
    assert len(proxy.requests) - asked < 40


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.RESET])
def test_a_store_that_is_away_is_no_lost_blob(
    server: StoreServer, proxy: FaultyProxy, tmp_path: Path, store_prefix: str, fault: Fault
) -> None:
    endpoint = proxy.endpoint
    options = {"prefix": store_prefix, "endpoint": endpoint, "patience_s": 0.5}
    blobs = server.store(tmp_path / "scratch", **options)
    put_blob(blobs, "files/file-1", SMALL_TEXT)
    scratch = blobs.scratch_file()
    scratch.write_bytes(SMALL_TEXT)
    proxy.choose = lambda _seen: fault
    began_s = time.monotonic()

    for act in (
        lambda: blobs.open("files/file-1"),
        lambda: blobs.open("files/never"),
        lambda: blobs.put("files/file-2", scratch),
        lambda: blobs.delete("files/file-1"),
        lambda: list(blobs.list_all()),
    ):
        with pytest.raises(StoreAwayError) as failure:
            act()
        assert endpoint in failure.value.for_operator
    assert time.monotonic() - began_s < 30
    assert scratch.read_bytes() == SMALL_TEXT  # to be tried again

    proxy.choose = lambda _seen: None
    blobs.put("files/file-2", scratch)
    assert read(blobs, "files/file-1") == read(blobs, "files/file-2") == SMALL_TEXT


def test_a_reader_says_that_the_store_went_away(
    server: StoreServer, proxy: FaultyProxy, tmp_path: Path, store_prefix: str
) -> None:
    options = {"prefix": store_prefix, "endpoint": proxy.endpoint, "patience_s": 0.5}
    blobs = server.store(tmp_path / "scratch", **options)
    put_blob(blobs, "jobs/j/adapter", content_of(LARGE))

    with blobs.open("jobs/j/adapter") as blob:
        blob.read(100)
        proxy.choose = lambda _seen: Fault.RESET
        with pytest.raises(StoreAwayError):
            blob.read()


@pytest.mark.only_sqlite
def test_wrong_bytes_are_noticed_and_read_again(
    blobs: S3BlobStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    put_blob(blobs, "files/file-1", SMALL_TEXT)
    sha256 = hashlib.sha256(SMALL_TEXT).hexdigest()
    corrupted: list[Seen] = []

    def once(seen: Seen) -> Fault | None:
        if seen.method == "GET" and not corrupted:
            corrupted.append(seen)
            return Fault.CORRUPT
        return None

    proxy.choose = once
    copy_checked(blobs, "files/file-1", sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == SMALL_TEXT
    assert corrupted

    proxy.choose = lambda seen: Fault.CORRUPT if seen.method == "GET" else None
    with pytest.raises(ManifestError, match="has changed"):
        copy_checked(blobs, "files/file-1", sha256, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_no_message_has_a_secret(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    access = S3Access.from_environment(environment_of(endpoint))
    blobs = S3BlobStore(BucketAddress("bucket", "p"), access, scratch_root=tmp_path, patience_s=0.1)

    with pytest.raises(StoreAwayError) as failure:
        blobs.open("files/file-1")

    told = f"{access!r} {blobs} {failure.value} {failure.value.for_operator}"
    assert "test-secret" not in told
    assert "s3://bucket/p at http://127.0.0.1" in failure.value.for_operator


@pytest.mark.parametrize("server", ["moto", "rclone"], indirect=True)
def test_a_missing_bucket_is_no_lost_blob(server: StoreServer, tmp_path: Path) -> None:
    access = S3Access.from_environment(server.environment())
    blobs = S3BlobStore(
        BucketAddress("no-such-bucket", ""), access, scratch_root=tmp_path, patience_s=0.5
    )

    with pytest.raises(StoreAwayError) as failure:
        blobs.open("files/file-1")

    assert "Create the bucket" in failure.value.for_operator
    with pytest.raises(StoreAwayError):
        put_blob(blobs, "files/file-1", b"bytes")


def test_two_writers_of_one_key_leave_one_of_them(blobs: S3BlobStore, tmp_path: Path) -> None:
    """Keys are unique. Should two writers meet nevertheless, there is no mixture."""
    contents = [bytes([number]) * LARGE for number in (1, 2)]
    threads = [
        threading.Thread(target=put_blob, args=(blobs, "jobs/j/adapter", content))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert read(blobs, "jobs/j/adapter") in contents
    with pytest.raises(BlobNotFoundError):
        blobs.open("jobs/j/other")
