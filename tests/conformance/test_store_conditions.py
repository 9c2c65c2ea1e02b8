"""What servers of S3 were seen to honour, and URLs that they accept."""

import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.core.settings.store_urls import BucketAddress
from app.core.storage.blob_store import StoreConditions
from app.core.storage.local import LocalBlobStore
from app.core.storage.s3 import S3Access, S3BlobStore
from tests.builders import put_blob
from tests.stores.servers import StoreServer

ALL = StoreConditions(
    creates_once=True, refuses_overwriting=True, reads_ranges=True, lists=True, deletes=True
)
SEEN = {
    "moto": ALL,
    "localbucket": replace(ALL, refuses_overwriting=False),
    "rclone": replace(ALL, creates_once=False, refuses_overwriting=False),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_probe_says_what_a_server_honours_and_leaves_nothing(
    name: str, store_server: Callable[[str], StoreServer], tmp_path: Path, store_prefix: str
) -> None:
    blobs = store_server(name).store(tmp_path, prefix=store_prefix, patience_s=2)

    assert blobs.probe_conditions() == SEEN[name]
    assert list(blobs.list_all()) == []


def test_a_local_store_has_nothing_to_probe(tmp_path: Path) -> None:
    local = LocalBlobStore(tmp_path)

    assert local.probe_conditions() is None
    assert local.collect_stale(older_than_s=0) == 0
    options = {"filename": "a", "media_type": "text/csv", "lifetime_s": 60}
    assert local.download_url("files/file-1", **options) is None


@pytest.mark.parametrize("name", SEEN)
def test_a_download_url_needs_no_key(
    name: str, store_server: Callable[[str], StoreServer], tmp_path: Path, store_prefix: str
) -> None:
    blobs = store_server(name).store(tmp_path, prefix=store_prefix)
    put_blob(blobs, "jobs/j/log a+b", b"step,loss\n")

    url = blobs.download_url(
        "jobs/j/log a+b", filename='Wärme "1".csv', media_type="text/csv", lifetime_s=60
    )
    assert url is not None
    with urllib.request.urlopen(url) as answer:  # noqa: S310 - of the server above
        assert answer.read() == b"step,loss\n"
        told = answer.headers.get("content-disposition")
    if name != "rclone":  # which sends neither
        assert told == "attachment; filename*=UTF-8''W%C3%A4rme%20%221%22.csv"


def test_keys_of_a_role_sign_no_url(tmp_path: Path) -> None:
    """obstore knows them, and we do not."""
    address, access = BucketAddress("bucket", ""), S3Access.from_environment({})
    blobs = S3BlobStore(address, access, scratch_root=tmp_path)

    options = {"filename": "a", "media_type": "text/csv", "lifetime_s": 60}
    assert blobs.download_url("files/file-1", **options) is None
    assert blobs.collect_stale(older_than_s=0) is None
