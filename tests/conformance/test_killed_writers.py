"""A process is killed at every request that it makes to S3: nobody sees half a blob."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.storage.s3 import S3BlobStore
from app.core.storage.s3.store import PART_BYTES
from tests.builders import put_blob
from tests.stores.faulty_proxy import Fault, FaultyProxy, Seen
from tests.stores.servers import BUCKET, NAMES, StoreServer

FIFTY_YEARS_S = 50 * 365 * 86_400
LARGE = 2 * PART_BYTES + 1
WRITER = """
import os, sys
from pathlib import Path
from app.core.settings.store_urls import BucketAddress
from app.core.storage.s3 import S3Access, S3BlobStore

bucket, prefix, scratch, large = sys.argv[1:]
access = S3Access.from_environment(os.environ)
blobs = S3BlobStore(BucketAddress(bucket, prefix), access, scratch_root=Path(scratch))
for key, content in (("jobs/j/small", b"s" * 1000), ("jobs/j/large", b"l" * int(large))):
    path = blobs.scratch_file()
    path.write_bytes(content)
    blobs.put(key, path)
blobs.delete("jobs/j/old")
"""
WHOLE = {"jobs/j/small": b"s" * 1000, "jobs/j/large": b"l" * LARGE, "jobs/j/old": b"old"}
SHA256 = {key: hashlib.sha256(content).hexdigest() for key, content in WHOLE.items()}


KEEPS_HALVES = ("localbucket",)
"""Keeps what it got of an upload whose sender has died. No row names it, so nobody reads it."""


def writing(blobs: S3BlobStore) -> str | None:
    """Key of a blob of which only the beginning is there."""
    for blob in blobs.list_all():
        if blob.bytes < len(WHOLE[blob.key]):
            with blobs.open(blob.key) as half:
                assert WHOLE[blob.key].startswith(half.read())
            return blob.key
    return None


class Killer:
    """Kills the writer at its request of this number, before or after the server has served it."""

    def __init__(self, number: int, *, is_served: bool) -> None:
        self.number = number
        self.is_served = is_served
        self.process: subprocess.Popen[bytes] | None = None
        self.seen = 0

    def __call__(self, request: Seen) -> Fault | None:
        self.seen += 1
        if self.seen != self.number or self.process is None:
            return None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return None if self.is_served else Fault.RESET


def write(proxy: FaultyProxy, server: StoreServer, prefix: str, scratch: Path, how: Killer) -> int:
    arguments = [BUCKET, prefix, str(scratch), str(LARGE)]
    proxy.choose = lambda _seen: None
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments],
        env=os.environ | server.environment(proxy.endpoint) | {"PYTHONPATH": str(Path.cwd())},
        stderr=subprocess.DEVNULL,
    ) as process:
        how.process = process
        proxy.choose = how
        return process.wait(60)


def digests(blobs: S3BlobStore) -> dict[str, str]:
    found: dict[str, str] = {}
    for blob in blobs.list_all():
        with blobs.open(blob.key) as stored:
            found[blob.key] = hashlib.sha256(stored.read()).hexdigest()
    return found


@pytest.mark.timeout(1500)  # it starts two processes for each request
@pytest.mark.parametrize("is_served", [True, False], ids=["after", "before"])
@pytest.mark.parametrize(
    "name",
    # localbucket takes three minutes for each of the two
    [pytest.param(each, marks=[pytest.mark.long] * (each == "localbucket")) for each in NAMES],
)
def test_a_writer_may_be_killed_at_every_request(
    name: str,
    store_server: object,
    tmp_path: Path,
    store_prefix: str,
    *,
    is_served: bool,
) -> None:
    assert callable(store_server)
    server: StoreServer = store_server(name)
    deaths = 0
    with FaultyProxy(server.port) as proxy:
        for number in range(1, 100):
            prefix, scratch = f"{store_prefix}/{number}", tmp_path / str(number)
            blobs = server.store(tmp_path / "reader", prefix=prefix)
            put_blob(blobs, "jobs/j/old", WHOLE["jobs/j/old"])

            killer = Killer(number, is_served=is_served)
            if write(proxy, server, prefix, scratch, killer) == 0:
                break  # it makes no request of this number
            deaths += 1
            seen = digests(blobs)
            if name in KEEPS_HALVES:
                seen.pop(writing(blobs), None)
            assert seen.items() <= SHA256.items()  # whole, whichever there are

            assert write(proxy, server, prefix, scratch, Killer(0, is_served=True)) == 0
            assert digests(blobs) == {key: SHA256[key] for key in ("jobs/j/small", "jobs/j/large")}
            blobs.collect_stale(older_than_s=0)
    assert deaths >= 7  # one upload, four of a large one with its beginning and end, a deletion


def test_what_a_killed_upload_has_left_is_deleted(
    store_server: object, tmp_path: Path, store_prefix: str
) -> None:
    """moto lists uploads that have not ended. localbucket and rclone do not, and that is known."""
    assert callable(store_server)
    server: StoreServer = store_server("moto")
    blobs = server.store(tmp_path / "reader", prefix=store_prefix)
    with FaultyProxy(server.port) as proxy:
        write(proxy, server, store_prefix, tmp_path / "a", Killer(4, is_served=True))
    other = server.store(tmp_path / "other", prefix=f"{store_prefix}-other")

    # moto says of every upload that it began in 2010.
    assert blobs.collect_stale(older_than_s=FIFTY_YEARS_S) == 0  # it may still be in progress
    assert other.collect_stale(older_than_s=0) == 0  # of another installation
    assert blobs.collect_stale(older_than_s=0) == 1
    assert blobs.collect_stale(older_than_s=0) == 0
    assert store_server("localbucket").store(tmp_path / "lb").collect_stale(older_than_s=0) is None
